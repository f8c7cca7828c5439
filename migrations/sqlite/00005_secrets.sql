-- +goose Up
-- How secrets are kept: '' as New API keeps them, else the state of `secrets migrate`. The row is there so that writers can lock it.
INSERT OR IGNORE INTO `ledger_meta` (`name`, `value`) VALUES ('secrets', '');

-- Which CRYPTO_SECRET a node runs with, as a value that says nothing about it: all must have the same before keys are sealed.
CREATE TABLE IF NOT EXISTS `ledger_node_secrets` (
  `producer` blob NOT NULL,
  `fingerprint` varchar(64) NOT NULL,
  PRIMARY KEY (`producer`)
);
