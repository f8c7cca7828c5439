-- +goose Up
-- New API's note that it was set up, only where it is missing.
CREATE TABLE IF NOT EXISTS `setups` (
  `id` integer PRIMARY KEY AUTOINCREMENT,
  `version` varchar(50) NOT NULL,
  `initialized_at` bigint NOT NULL
);

-- One row per login. No secret is in it: cookies and tokens are signed with SESSION_SECRET. `rotation` numbers the refresh
-- cookie that counts. Times are Unix seconds; `revoked_at` 0 means that the session is in force.
CREATE TABLE IF NOT EXISTS `ledger_sessions` (
  `sid` blob NOT NULL,
  `user_id` bigint NOT NULL,
  `auth_version` bigint NOT NULL,
  `rotation` bigint NOT NULL DEFAULT 0,
  `rotated_at` bigint NOT NULL,
  `method` varchar(16) NOT NULL,
  `ip` varchar(64) NOT NULL,
  `agent` varchar(255) NOT NULL,
  `created_at` bigint NOT NULL,
  `active_at` bigint NOT NULL,
  `expires_at` bigint NOT NULL,
  `revoked_at` bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (`sid`)
);

CREATE INDEX IF NOT EXISTS `ledger_sessions_user` ON `ledger_sessions` (`user_id`,`expires_at`);
