-- The usage log on SQLite. Ids of events and producers are the 16 bytes of the UUID. log_gen counts the logs
-- that an operator adopted, log_offset is the place in that log.

-- One row per event, at its lowest place, with the columns of New API's logs.
CREATE TABLE IF NOT EXISTS `ledger_usage` (
  `id` integer PRIMARY KEY AUTOINCREMENT,
  `event_id` blob NOT NULL,
  `part` integer NOT NULL,
  `log_gen` integer NOT NULL,
  `log_offset` bigint NOT NULL,
  `kind` varchar(32) NOT NULL,
  `moves` varchar(8) NOT NULL,
  `producer` blob NOT NULL,
  `seq` bigint NOT NULL,
  `prev` bigint NOT NULL,
  `event_key` text NOT NULL,
  `granted` bigint NOT NULL,
  `charged` bigint NOT NULL,
  `requests` bigint NOT NULL,
  `node` varchar(191) NOT NULL,
  `user_id` bigint NOT NULL,
  `created_at` bigint NOT NULL,
  `type` bigint NOT NULL,
  `content` text NOT NULL,
  `username` varchar(191) NOT NULL,
  `token_name` varchar(191) NOT NULL,
  `model_name` varchar(191) NOT NULL,
  `quota` bigint NOT NULL,
  `prompt_tokens` bigint NOT NULL,
  `completion_tokens` bigint NOT NULL,
  `use_time` bigint NOT NULL,
  `is_stream` boolean NOT NULL,
  `channel_id` bigint NOT NULL,
  `token_id` bigint NOT NULL,
  `group` varchar(191) NOT NULL,
  `ip` varchar(191) NOT NULL,
  `request_id` varchar(64) NOT NULL,
  `upstream_request_id` varchar(128) NOT NULL,
  `other` text NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS `ledger_usage_event` ON `ledger_usage` (`event_id`);
CREATE INDEX IF NOT EXISTS `ledger_usage_created` ON `ledger_usage` (`created_at`,`id`);
CREATE INDEX IF NOT EXISTS `ledger_usage_user` ON `ledger_usage` (`user_id`,`created_at`,`id`);
CREATE INDEX IF NOT EXISTS `ledger_usage_token` ON `ledger_usage` (`token_id`,`created_at`,`id`);
CREATE INDEX IF NOT EXISTS `ledger_usage_request` ON `ledger_usage` (`request_id`);

-- The log itself: one row per place.
CREATE TABLE IF NOT EXISTS `ledger_events` (
  `part` integer NOT NULL,
  `log_gen` integer NOT NULL,
  `log_offset` bigint NOT NULL,
  `created_at` bigint NOT NULL,
  `event` blob NOT NULL,
  PRIMARY KEY (`part`,`log_gen`,`log_offset`)
);
CREATE INDEX IF NOT EXISTS `ledger_events_created` ON `ledger_events` (`created_at`);

CREATE TABLE IF NOT EXISTS `ledger_usage_positions` (
  `part` integer NOT NULL,
  `log_gen` integer NOT NULL,
  `next_offset` bigint NOT NULL,
  `last_offset` bigint NOT NULL,
  `last_event` blob NOT NULL,
  `updated_at` bigint NOT NULL,
  PRIMARY KEY (`part`)
);

CREATE TABLE IF NOT EXISTS `ledger_usage_dead` (
  `part` integer NOT NULL,
  `log_gen` integer NOT NULL,
  `log_offset` bigint NOT NULL,
  `reason` text NOT NULL,
  `value` blob NOT NULL,
  `created_at` bigint NOT NULL,
  PRIMARY KEY (`part`,`log_gen`,`log_offset`)
);
