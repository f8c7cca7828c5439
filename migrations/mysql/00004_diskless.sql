-- +goose Up
-- A producer with `diskless` keeps its journal in memory (JOURNAL=kafka): once it is silent nobody can recover it, so it is given up soon.
-- MySQL commits each ALTER by itself and has no ADD COLUMN IF NOT EXISTS: a master killed behind it runs this again.
SET @add_diskless = IF(
  (SELECT COUNT(*) FROM information_schema.columns
    WHERE table_schema = DATABASE() AND table_name = 'ledger_producers' AND column_name = 'diskless') = 0,
  'ALTER TABLE `ledger_producers` ADD COLUMN `diskless` tinyint NOT NULL DEFAULT 0',
  'DO 0');
PREPARE add_diskless FROM @add_diskless;
EXECUTE add_diskless;
DEALLOCATE PREPARE add_diskless;
