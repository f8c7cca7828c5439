package main

import "log/slog"

// notHonoured are New API's names that mean something there and nothing here, with what to do instead.
var notHonoured = map[string]string{ //nolint:gosec // names of variables and advice, no secrets
	"MEMORY_CACHE_ENABLED":                       "the catalog is always in memory",
	"CHANNEL_UPDATE_FREQUENCY":                   "balances of upstream accounts are not polled",
	"CHANNEL_TEST_FREQUENCY":                     "channels are not tested on a schedule",
	"CHANNEL_TEST_ENABLED":                       "channels are not tested on a schedule",
	"POLLING_INTERVAL":                           "channels are not tested on a schedule",
	"ERROR_LOG_ENABLED":                          "failed requests cost nothing and are in the node's log and metrics",
	"GET_MEDIA_TOKEN":                            "media are priced from the upstream's usage",
	"GET_MEDIA_TOKEN_NOT_STREAM":                 "media are priced from the upstream's usage",
	"CountToken":                                 "prompts are counted only where it matters",
	"UPDATE_TASK":                                "asynchronous tasks are not relayed",
	"AZURE_DEFAULT_API_VERSION":                  "2025-04-01-preview is used",
	"GEMINI_SAFETY_SETTING":                      "Gemini's own API is not relayed",
	"COHERE_SAFETY_SETTING":                      "Cohere's own API is not relayed",
	"GLOBAL_API_RATE_LIMIT_ENABLE":               "the management API is not rate limited per address",
	"GLOBAL_API_RATE_LIMIT":                      "the management API is not rate limited per address",
	"GLOBAL_WEB_RATE_LIMIT_ENABLE":               "there is no web console to limit",
	"GLOBAL_WEB_RATE_LIMIT":                      "there is no web console to limit",
	"CRITICAL_RATE_LIMIT_ENABLE":                 "failed logins are slowed down instead",
	"CRITICAL_RATE_LIMIT":                        "failed logins are slowed down instead",
	"SQL_CONN_MAX_LIFETIME":                      "use SQL_MAX_LIFETIME (seconds)",
	"SQLITE_BUSY_TIMEOUT":                        "writers wait 30 s",
	"ERROR_LOG_ENABLE":                           "failed requests cost nothing and are in the node's log and metrics",
	"ENFORCE_INCLUDE_USAGE":                      "use FORCE_STREAM_OPTION",
	"DEFAULT_QUOTA":                              "use the option QuotaForNewUser",
	"ENABLE_METRIC":                              "/metrics is always there",
	"ENABLE_PPROF":                               "profiles are not served",
	"PYROSCOPE_URL":                              "profiles are not pushed",
	"SKIP_64BIT_QUOTA_SCHEMA_CHECK":              "columns of any width are served; the truth is in ledger_accounts",
	"SESSION_COOKIE_TRUSTED_URL":                 "cookies are same-site",
	"ANONYMOUS_REQUEST_BODY_LIMIT_KB":            "bodies are read after authentication only",
	"GLOBAL_API_RATE_LIMIT_DURATION":             "the management API is not rate limited per address",
	"GLOBAL_WEB_RATE_LIMIT_DURATION":             "there is no web console to limit",
	"CRITICAL_RATE_LIMIT_DURATION":               "failed logins are slowed down instead",
	"SEARCH_RATE_LIMIT_ENABLE":                   "searches are bounded by their page size",
	"SEARCH_RATE_LIMIT":                          "searches are bounded by their page size",
	"SEARCH_RATE_LIMIT_DURATION":                 "searches are bounded by their page size",
	"USER_SESSION_ACTIVE_LIMIT":                  "logins are not counted; an ended session is forgotten",
	"USER_SESSION_ISSUANCE_LIMIT":                "logins are not counted; an ended session is forgotten",
	"USER_SESSION_ISSUANCE_WINDOW_SECONDS":       "logins are not counted; an ended session is forgotten",
	"USER_SESSION_REVOKED_RETENTION_DAYS":        "logins are not counted; an ended session is forgotten",
	"USER_SESSION_HOURLY_ALERT_THRESHOLD":        "logins are not counted; an ended session is forgotten",
	"MAX_FILE_DOWNLOAD_MB":                       "the relay downloads no media",
	"DIFY_DEBUG":                                 "Dify's own API is not relayed",
	"TASK_QUERY_LIMIT":                           "asynchronous tasks are not relayed",
	"TASK_TIMEOUT_MINUTES":                       "asynchronous tasks are not relayed",
	"TASK_PRICE_PATCH":                           "asynchronous tasks are not relayed",
	"CHANNEL_UPSTREAM_MODEL_UPDATE_TASK_ENABLED": "models of channels are not fetched from upstreams",
	"NOTIFY_LIMIT_COUNT":                         "no notifications are sent",
	"NOTIFICATION_LIMIT_DURATION_MINUTE":         "no notifications are sent",
	"SMTP_STARTTLS_ENABLE":                       "no mail is sent",
	"SMTP_STARTTLS_ENABLED":                      "no mail is sent",
	"SMTP_INSECURE_SKIP_VERIFY":                  "no mail is sent",
	"EMAIL_SERVER":                               "no mail is sent",
	"EMAIL_FROM":                                 "no mail is sent",
	"EMAIL_PASSWORD":                             "no mail is sent",
	"SYNC_UPSTREAM_BASE":                         "prices and models are not fetched from elsewhere",
	"SYNC_HTTP_TIMEOUT_SECONDS":                  "prices and models are not fetched from elsewhere",
	"SYNC_HTTP_RETRY":                            "prices and models are not fetched from elsewhere",
	"SYNC_HTTP_MAX_MB":                           "prices and models are not fetched from elsewhere",
	"SUBSCRIPTION_PLAN_CACHE_TTL":                "there are no subscriptions",
	"SUBSCRIPTION_PLAN_CACHE_CAP":                "there are no subscriptions",
	"SUBSCRIPTION_PLAN_INFO_CACHE_TTL":           "there are no subscriptions",
	"SUBSCRIPTION_PLAN_INFO_CACHE_CAP":           "there are no subscriptions",
	"TRUSTED_REDIRECT_DOMAINS":                   "nothing is paid here",
	"GIN_MODE":                                   "use DEBUG",
	"GLOBAL_USER_QUOTA":                          "use the option QuotaForNewUser",
	"USER_CONTENT_REQUEST_TIMEOUT":               "the relay downloads no media",
	"METRIC_QUEUE_SIZE":                          "/metrics is always there",
	"METRIC_SUCCESS_RATE_THRESHOLD":              "/metrics is always there",
	"TEST_PROMPT":                                "channels are tested with one fixed prompt",
	"GEMINI_VERSION":                             "Gemini's own API is not relayed",
	"SQL_SLOW_THRESHOLD_MS":                      "see the metrics of the consumers",
}

// warnNotHonoured names each known variable that is set and does nothing here, once.
func warnNotHonoured(cfg *config, log *slog.Logger) {
	for _, name := range cfg.unused {
		log.Warn("a variable of New API is set that Ledgerline does not use", "name", name, "instead", notHonoured[name])
	}
	if cfg.NodeType != "master" && cfg.NodeType != "slave" {
		log.Warn("NODE_TYPE is neither master nor slave: this node is a master, as it would be in New API", "value", cfg.NodeType)
	}
}
