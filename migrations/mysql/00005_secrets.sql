-- +goose Up
-- How secrets are kept: '' as New API keeps them, else the state of `secrets migrate`. The row is there so that writers can lock it.
INSERT IGNORE INTO `ledger_meta` (`name`, `value`) VALUES ('secrets', '');

-- Which CRYPTO_SECRET a node runs with, as a value that says nothing about it: all must have the same before keys are sealed.
CREATE TABLE IF NOT EXISTS `ledger_node_secrets` (
  `producer` binary(16) NOT NULL,
  `fingerprint` varchar(64) CHARACTER SET ascii NOT NULL,
  PRIMARY KEY (`producer`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;
