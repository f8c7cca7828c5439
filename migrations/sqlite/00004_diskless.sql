-- +goose Up
-- A producer with `diskless` keeps its journal in memory (JOURNAL=kafka): once it is silent nobody can recover it, so it is given up soon.
ALTER TABLE `ledger_producers` ADD COLUMN `diskless` tinyint NOT NULL DEFAULT 0;
