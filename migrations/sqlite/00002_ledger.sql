-- +goose Up
-- Times are Unix milliseconds. Ids of events and producers are the 16 bytes of the UUID.

CREATE TABLE IF NOT EXISTS `ledger_meta` (
  `name` varchar(64) NOT NULL,
  `value` text NOT NULL,
  PRIMARY KEY (`name`)
);

-- One row per partition of the log: the position of the quota consumer, the range of its last flush with the offsets in
-- it that were not applied, and the number of the last epoch that was allocated.
CREATE TABLE IF NOT EXISTS `ledger_partitions` (
  `part` integer NOT NULL,
  `next_offset` bigint NOT NULL DEFAULT 0,
  `last_from` bigint NOT NULL DEFAULT 0,
  `last_to` bigint NOT NULL DEFAULT 0,
  `skipped` text NOT NULL,
  `last_offset` bigint NOT NULL DEFAULT -1,
  `last_event` blob NOT NULL,
  `epoch` bigint NOT NULL DEFAULT 0,
  `updated_at` bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (`part`)
);

-- The truth. `written` is what was last put into New API's column, `pending_adopt` the hand edits found in that column
-- whose event is not applied yet. The base_ columns are what New API's counters hold that charged and requests do not
-- cover (until the opening event is applied). The step_ columns and used_at are what the last flush raised; New API's counters are
-- raised by them in the same transaction. A channel has one row per partition (and one of part -1: what it had used
-- before Ledgerline), users and tokens have one.
CREATE TABLE IF NOT EXISTS `ledger_accounts` (
  `kind` varchar(8) NOT NULL,
  `id` bigint NOT NULL,
  `slot` integer NOT NULL DEFAULT 0,
  `part` integer NOT NULL,
  `granted` bigint NOT NULL DEFAULT 0,
  `charged` bigint NOT NULL DEFAULT 0,
  `requests` bigint NOT NULL DEFAULT 0,
  `written` bigint NOT NULL DEFAULT 0,
  `pending_adopt` bigint NOT NULL DEFAULT 0,
  `base_used` bigint NOT NULL DEFAULT 0,
  `base_requests` bigint NOT NULL DEFAULT 0,
  `step_charged` bigint NOT NULL DEFAULT 0,
  `step_requests` bigint NOT NULL DEFAULT 0,
  `used_at` bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (`kind`,`id`,`slot`)
);
CREATE INDEX IF NOT EXISTS `ledger_accounts_part` ON `ledger_accounts` (`part`,`kind`,`id`);

CREATE TABLE IF NOT EXISTS `ledger_watermarks` (
  `part` integer NOT NULL,
  `producer` blob NOT NULL,
  `mark` bigint NOT NULL,
  `holes` text NOT NULL,
  PRIMARY KEY (`part`,`producer`)
);
CREATE INDEX IF NOT EXISTS `ledger_watermarks_producer` ON `ledger_watermarks` (`producer`);

CREATE TABLE IF NOT EXISTS `ledger_producers` (
  `id` blob NOT NULL,
  `node` varchar(191) NOT NULL,
  `addr` varchar(191) NOT NULL,
  `version` varchar(64) NOT NULL,
  `state` varchar(8) NOT NULL,
  `beat` bigint NOT NULL DEFAULT 0,
  `started_at` bigint NOT NULL,
  `updated_at` bigint NOT NULL,
  PRIMARY KEY (`id`)
);
CREATE INDEX IF NOT EXISTS `ledger_producers_state` ON `ledger_producers` (`state`,`updated_at`);

CREATE TABLE IF NOT EXISTS `ledger_epochs` (
  `part` integer NOT NULL,
  `epoch` bigint NOT NULL,
  `end_offset` bigint NOT NULL,
  `reporters` text NOT NULL,
  `opened_at` bigint NOT NULL,
  PRIMARY KEY (`part`,`epoch`)
);

-- Events born here. `amount` is what an adoption or opening added to pending_adopt. States: new, moved (journaled by
-- some node), applied, dead (in the dead-letter store).
CREATE TABLE IF NOT EXISTS `ledger_outbox` (
  `event_key` varchar(191) NOT NULL,
  `event_id` blob NOT NULL,
  `user_id` bigint NOT NULL,
  `kind` varchar(32) NOT NULL,
  `amount` bigint NOT NULL DEFAULT 0,
  `event` blob NOT NULL,
  `state` varchar(8) NOT NULL,
  `created_at` bigint NOT NULL,
  `due_at` bigint NOT NULL,
  `lease` blob NOT NULL,
  PRIMARY KEY (`event_key`)
);
CREATE INDEX IF NOT EXISTS `ledger_outbox_due` ON `ledger_outbox` (`state`,`due_at`,`created_at`);
CREATE INDEX IF NOT EXISTS `ledger_outbox_lease` ON `ledger_outbox` (`lease`);

-- Records that could not be applied. A row stays after its re-drive (state redriven), because a fold of the log must
-- know that the original did not count.
CREATE TABLE IF NOT EXISTS `ledger_dead_letters` (
  `part` integer NOT NULL,
  `log_offset` bigint NOT NULL,
  `event_id` blob NOT NULL,
  `user_id` bigint NOT NULL,
  `kind` varchar(32) NOT NULL,
  `code` varchar(32) NOT NULL,
  `reason` text NOT NULL,
  `value` blob NOT NULL,
  `state` varchar(8) NOT NULL,
  `redrive_part` integer NOT NULL DEFAULT -1,
  `redrive_offset` bigint NOT NULL DEFAULT -1,
  `created_at` bigint NOT NULL,
  `updated_at` bigint NOT NULL,
  PRIMARY KEY (`part`,`log_offset`)
);
CREATE INDEX IF NOT EXISTS `ledger_dead_letters_event` ON `ledger_dead_letters` (`event_id`);

CREATE TABLE IF NOT EXISTS `ledger_changes` (
  `seq` bigint NOT NULL,
  `kind` varchar(32) NOT NULL,
  `row_id` bigint NOT NULL,
  `created_at` bigint NOT NULL,
  PRIMARY KEY (`seq`)
);

CREATE TABLE IF NOT EXISTS `ledger_snapshots` (
  `id` integer PRIMARY KEY AUTOINCREMENT,
  `part` integer NOT NULL,
  `next_offset` bigint NOT NULL,
  `last_offset` bigint NOT NULL,
  `last_event` blob NOT NULL,
  `accounts` bigint NOT NULL,
  `marks` bigint NOT NULL,
  `event_keys` bigint NOT NULL,
  `taken_at` bigint NOT NULL
);
CREATE INDEX IF NOT EXISTS `ledger_snapshots_part` ON `ledger_snapshots` (`part`,`next_offset`);

CREATE TABLE IF NOT EXISTS `ledger_snapshot_chunks` (
  `snapshot` bigint NOT NULL,
  `seq` integer NOT NULL,
  `body` blob NOT NULL,
  PRIMARY KEY (`snapshot`,`seq`)
);

INSERT OR IGNORE INTO `ledger_meta` (`name`, `value`) VALUES ('last_change', '0');
