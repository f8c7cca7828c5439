-- The usage log on MySQL or MariaDB. Ids of events and producers are the 16 bytes of the UUID. log_gen counts the logs
-- that an operator adopted, log_offset is the place in that log.

-- One row per event, at its lowest place, with the columns of New API's logs.
CREATE TABLE IF NOT EXISTS `ledger_usage` (
  `id` bigint NOT NULL AUTO_INCREMENT,
  `event_id` binary(16) NOT NULL,
  `part` int NOT NULL,
  `log_gen` int NOT NULL,
  `log_offset` bigint NOT NULL,
  `kind` varchar(32) NOT NULL,
  `moves` varchar(8) NOT NULL,
  `producer` binary(16) NOT NULL,
  `seq` bigint NOT NULL,
  `prev` bigint NOT NULL,
  `event_key` varbinary(191) NOT NULL,
  `granted` bigint NOT NULL,
  `charged` bigint NOT NULL,
  `requests` bigint NOT NULL,
  `node` varchar(191) NOT NULL,
  `user_id` bigint NOT NULL,
  `created_at` bigint NOT NULL,
  `type` bigint NOT NULL,
  `content` longtext NOT NULL,
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
  `other` longtext NOT NULL,
  PRIMARY KEY (`id`),
  UNIQUE KEY `ledger_usage_event` (`event_id`),
  KEY `ledger_usage_created` (`created_at`,`id`),
  KEY `ledger_usage_user` (`user_id`,`created_at`,`id`),
  KEY `ledger_usage_token` (`token_id`,`created_at`,`id`),
  KEY `ledger_usage_request` (`request_id`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

-- The log itself: one row per place.
CREATE TABLE IF NOT EXISTS `ledger_events` (
  `part` int NOT NULL,
  `log_gen` int NOT NULL,
  `log_offset` bigint NOT NULL,
  `created_at` bigint NOT NULL,
  `event` mediumblob NOT NULL,
  PRIMARY KEY (`part`,`log_gen`,`log_offset`),
  KEY `ledger_events_created` (`created_at`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

CREATE TABLE IF NOT EXISTS `ledger_usage_positions` (
  `part` int NOT NULL,
  `log_gen` int NOT NULL,
  `next_offset` bigint NOT NULL,
  `last_offset` bigint NOT NULL,
  `last_event` binary(16) NOT NULL,
  `updated_at` bigint NOT NULL COMMENT 'Unix milliseconds',
  PRIMARY KEY (`part`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;

CREATE TABLE IF NOT EXISTS `ledger_usage_dead` (
  `part` int NOT NULL,
  `log_gen` int NOT NULL,
  `log_offset` bigint NOT NULL,
  `reason` text NOT NULL,
  `value` longblob NOT NULL,
  `created_at` bigint NOT NULL COMMENT 'Unix milliseconds',
  PRIMARY KEY (`part`,`log_gen`,`log_offset`)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;
