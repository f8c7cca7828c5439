-- The usage log on ClickHouse. log_gen counts the logs that an operator adopted, log_offset is the place in that log.

-- One row per event, with the columns of New API's logs. The sorting key is a function of the event alone, so that copies
-- of it meet in one month and collapse; version is highest for the lowest place, which therefore stays: a re-driven copy or
-- a duplicate must not move a row past a cut that was verified. Days come first for the lists, users second for theirs.
CREATE TABLE IF NOT EXISTS ledger_usage (
  `event_id` UUID,
  `part` UInt16,
  `log_gen` UInt16,
  `log_offset` Int64 CODEC(Delta, LZ4),
  `version` UInt64 MATERIALIZED 18446744073709551615 - (bitShiftLeft(toUInt64(log_gen), 48) + toUInt64(log_offset)),
  `kind` LowCardinality(String),
  `moves` LowCardinality(String),
  `producer` UUID,
  `seq` Int64 CODEC(Delta, LZ4),
  `prev` Int64 CODEC(Delta, LZ4),
  `event_key` String,
  `granted` Int64 CODEC(T64, LZ4),
  `charged` Int64 CODEC(T64, LZ4),
  `requests` Int64 CODEC(T64, LZ4),
  `node` LowCardinality(String),
  `user_id` Int64 CODEC(T64, LZ4),
  `created_at` Int64 CODEC(Delta, LZ4),
  `type` Int32 CODEC(T64, LZ4),
  `content` String CODEC(ZSTD(1)),
  `username` String,
  `token_name` String,
  `model_name` LowCardinality(String),
  `quota` Int64 CODEC(T64, LZ4),
  `prompt_tokens` Int64 CODEC(T64, LZ4),
  `completion_tokens` Int64 CODEC(T64, LZ4),
  `use_time` Int64 CODEC(T64, LZ4),
  `is_stream` UInt8,
  `channel_id` Int64 CODEC(T64, LZ4),
  `token_id` Int64 CODEC(T64, LZ4),
  `group` LowCardinality(String),
  `ip` String,
  `request_id` String,
  `upstream_request_id` String,
  `other` String CODEC(ZSTD(1)),
  INDEX ledger_usage_request request_id TYPE bloom_filter(0.01) GRANULARITY 4,
  INDEX ledger_usage_token token_id TYPE bloom_filter(0.01) GRANULARITY 1,
  INDEX ledger_usage_channel channel_id TYPE set(64) GRANULARITY 4
) ENGINE = ReplacingMergeTree(version)
PARTITION BY toYYYYMM(toDateTime(created_at, 'UTC'))
ORDER BY (intDiv(created_at, 86400), user_id, created_at, event_id)
SETTINGS non_replicated_deduplication_window = 1000;

-- The log itself: one row per place, with every copy, in the order in which it is replayed.
CREATE TABLE IF NOT EXISTS ledger_events (
  `part` UInt16,
  `log_gen` UInt16,
  `log_offset` Int64 CODEC(Delta, LZ4),
  `created_at` Int64 CODEC(Delta, LZ4),
  `event` String CODEC(ZSTD(1))
) ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(toDateTime(created_at, 'UTC'))
ORDER BY (part, log_gen, log_offset)
SETTINGS non_replicated_deduplication_window = 1000;

-- Every position that was stored; the highest counts, and is what a merge keeps.
CREATE TABLE IF NOT EXISTS ledger_usage_positions (
  `part` UInt16,
  `log_gen` UInt16,
  `next_offset` Int64,
  `last_offset` Int64,
  `last_event` UUID,
  `updated_at` Int64,
  `version` UInt64 MATERIALIZED bitShiftLeft(toUInt64(log_gen), 48) + toUInt64(next_offset)
) ENGINE = ReplacingMergeTree(version)
ORDER BY part;

CREATE TABLE IF NOT EXISTS ledger_usage_dead (
  `part` UInt16,
  `log_gen` UInt16,
  `log_offset` Int64,
  `reason` String,
  `value` String,
  `created_at` Int64
) ENGINE = ReplacingMergeTree
ORDER BY (part, log_gen, log_offset);
