-- +goose Up
-- Tables of New API, only where they are missing: its column names, with the widest types (quotas are bigint).
-- Every index stands inside its table, as a unique key that ends in what is unique anyway: a statement that makes an index would
-- touch a table that New API made.

CREATE TABLE IF NOT EXISTS `users` (
  `id` integer PRIMARY KEY AUTOINCREMENT,
  `username` varchar(191) UNIQUE,
  `password` text NOT NULL,
  `display_name` varchar(191),
  `role` bigint DEFAULT 1,
  `status` bigint DEFAULT 1,
  `email` varchar(191),
  `github_id` varchar(191),
  `discord_id` varchar(191),
  `oidc_id` varchar(191),
  `wechat_id` varchar(191),
  `telegram_id` varchar(191),
  `access_token` char(32) UNIQUE,
  `quota` bigint DEFAULT 0,
  `used_quota` bigint DEFAULT 0,
  `request_count` bigint DEFAULT 0,
  `group` varchar(64) DEFAULT 'default',
  `aff_code` varchar(32) UNIQUE,
  `aff_count` bigint DEFAULT 0,
  `aff_quota` bigint DEFAULT 0,
  `aff_history` bigint DEFAULT 0,
  `inviter_id` bigint,
  `deleted_at` datetime,
  `linux_do_id` varchar(191),
  `setting` text,
  `remark` varchar(255),
  `stripe_customer` varchar(64),
  `created_at` bigint,
  `last_login_at` bigint DEFAULT 0,
  `auth_version` bigint NOT NULL DEFAULT 1
);

CREATE TABLE IF NOT EXISTS `tokens` (
  `id` integer PRIMARY KEY AUTOINCREMENT,
  `user_id` bigint,
  `key` varchar(128) UNIQUE,
  `status` bigint DEFAULT 1,
  `name` varchar(191),
  `created_time` bigint,
  `accessed_time` bigint,
  `expired_time` bigint DEFAULT -1,
  `remain_quota` bigint DEFAULT 0,
  `unlimited_quota` numeric,
  `model_limits_enabled` numeric,
  `model_limits` text,
  `allow_ips` varchar(191) DEFAULT '',
  `used_quota` bigint DEFAULT 0,
  `group` varchar(191) DEFAULT '',
  `cross_group_retry` numeric,
  `auto_groups` text,
  `deleted_at` datetime,
  UNIQUE (`user_id`,`id`)
);

CREATE TABLE IF NOT EXISTS `channels` (
  `id` integer PRIMARY KEY AUTOINCREMENT,
  `type` bigint DEFAULT 0,
  `key` text NOT NULL,
  `open_ai_organization` text,
  `test_model` text,
  `status` bigint DEFAULT 1,
  `name` varchar(191),
  `weight` bigint DEFAULT 0,
  `created_time` bigint,
  `test_time` bigint,
  `response_time` bigint,
  `base_url` varchar(191) DEFAULT '',
  `other` text,
  `balance` real,
  `balance_updated_time` bigint,
  `models` text,
  `group` varchar(64) DEFAULT 'default',
  `used_quota` bigint DEFAULT 0,
  `model_mapping` text,
  `status_code_mapping` varchar(1024) DEFAULT '',
  `priority` bigint DEFAULT 0,
  `auto_ban` bigint DEFAULT 1,
  `other_info` text,
  `tag` varchar(191),
  `setting` text,
  `param_override` text,
  `header_override` text,
  `remark` varchar(255),
  `channel_info` text,
  `settings` text
);

CREATE TABLE IF NOT EXISTS `abilities` (
  `group` varchar(64) NOT NULL,
  `model` varchar(255) NOT NULL,
  `channel_id` bigint NOT NULL,
  `enabled` numeric,
  `priority` bigint DEFAULT 0,
  `weight` bigint DEFAULT 0,
  `tag` varchar(191),
  PRIMARY KEY (`group`,`model`,`channel_id`),
  UNIQUE (`channel_id`,`group`,`model`)
);

CREATE TABLE IF NOT EXISTS `options` (
  `key` varchar(191) NOT NULL,
  `value` text,
  PRIMARY KEY (`key`)
);

CREATE TABLE IF NOT EXISTS `redemptions` (
  `id` integer PRIMARY KEY AUTOINCREMENT,
  `user_id` bigint,
  `key` char(32) UNIQUE,
  `status` bigint DEFAULT 1,
  `name` varchar(191),
  `quota` bigint DEFAULT 100,
  `created_time` bigint,
  `redeemed_time` bigint,
  `used_user_id` bigint,
  `deleted_at` datetime,
  `expired_time` bigint
);

CREATE TABLE IF NOT EXISTS `top_ups` (
  `id` integer PRIMARY KEY AUTOINCREMENT,
  `user_id` bigint,
  `amount` bigint,
  `money` real,
  `trade_no` varchar(255) UNIQUE,
  `payment_method` varchar(50),
  `payment_provider` varchar(50) DEFAULT '',
  `create_time` bigint,
  `complete_time` bigint,
  `status` text,
  UNIQUE (`user_id`,`id`)
);

CREATE TABLE IF NOT EXISTS `logs` (
  `id` integer PRIMARY KEY AUTOINCREMENT,
  `user_id` bigint,
  `created_at` bigint,
  `type` bigint,
  `content` text,
  `username` varchar(191) DEFAULT '',
  `token_name` varchar(191) DEFAULT '',
  `model_name` varchar(191) DEFAULT '',
  `quota` bigint DEFAULT 0,
  `prompt_tokens` bigint DEFAULT 0,
  `completion_tokens` bigint DEFAULT 0,
  `use_time` bigint DEFAULT 0,
  `is_stream` numeric,
  `channel_id` bigint,
  `channel_name` text,
  `token_id` bigint DEFAULT 0,
  `group` varchar(191),
  `ip` varchar(191) DEFAULT '',
  `request_id` varchar(64) DEFAULT '',
  `upstream_request_id` varchar(128) DEFAULT '',
  `other` text,
  UNIQUE (`created_at`,`type`,`id`),
  UNIQUE (`user_id`,`id`)
);
