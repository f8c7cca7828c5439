-- How far `import -logs` has come in each table `logs` of New API's that it copies from. `next` is a place in that table: an
-- id, or a second where rows have none.
CREATE TABLE IF NOT EXISTS `ledger_usage_imports` (
  `source` varchar(191) NOT NULL,
  `next` bigint NOT NULL,
  `updated_at` bigint NOT NULL,
  PRIMARY KEY (`source`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;
