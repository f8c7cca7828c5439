package console

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"strings"

	"ledgerline/ledger"
	"ledgerline/ledger/rating"
	"ledgerline/ledger/sqlstore"
	"ledgerline/relay/catalog"
)

// optionDefaults are New API's defaults of the options that this package reads or shows, beside the price options.
var optionDefaults = map[string]string{
	"About": "", "AutoGroups": `["default"]`, "AutomaticDisableChannelEnabled": "false", "AutomaticDisableKeywords": catalog.DefaultDisableKeywords,
	"AutomaticDisableStatusCodes": "401", "AutomaticEnableChannelEnabled": "false",
	"AutomaticRetryStatusCodes": "100-199,300-399,401-407,409-499,500-503,505-523,525-599",
	"ChannelDisableThreshold":   "5", "Chats": "[]", "DataExportDefaultTime": "hour", "DataExportEnabled": "true", "DataExportInterval": "5",
	"DefaultCollapseSidebar": "false", "DefaultUseAutoGroup": "false", "DemoSiteEnabled": "false", "DisplayInCurrencyEnabled": "true",
	"DisplayTokenStatEnabled": "true", "DrawingEnabled": "true", "EmailVerificationEnabled": "false", "ExposeRatioEnabled": "false", "Footer": "",
	"HeaderNavModules": "", "HomePageContent": "", "LogConsumeEnabled": "true", "Logo": "", "MaxTokenAutoGroups": "5", "MinTopUp": "1",
	"ModelRequestRateLimitCount": "0", "ModelRequestRateLimitDurationMinutes": "1", "ModelRequestRateLimitEnabled": "false",
	"ModelRequestRateLimitGroup": "{}", "ModelRequestRateLimitSuccessCount": "1000", "Notice": "", "PasswordLoginEnabled": "true",
	"PasswordRegisterEnabled": "true", "PreConsumedQuota": "500", "Price": "7.3", "QuotaForInvitee": "0", "QuotaForInviter": "0",
	"QuotaForNewUser": "0", "QuotaRemindThreshold": "1000", "RegisterEnabled": "true", "RetryTimes": "0", "ServerAddress": "",
	"SidebarModulesAdmin": "", "StripeUnitPrice": "8", "SystemName": "Ledgerline", "TaskEnabled": "true", "TopUpLink": "",
	"TopupGroupRatio": `{"default":1,"svip":1,"vip":1}`, "USDExchangeRate": "7.3", "UserUsableGroups": `{"default":"Default group","vip":"VIP group"}`,
	"console_setting.announcements": "", "console_setting.announcements_enabled": "true", "console_setting.api_info": "",
	"console_setting.api_info_enabled": "true", "console_setting.faq": "", "console_setting.faq_enabled": "true",
	"general_setting.custom_currency_exchange_rate": "1", "general_setting.custom_currency_symbol": "¤", "general_setting.docs_link": "",
	"general_setting.quota_display_type": "USD", "legal.privacy_policy": "", "legal.user_agreement": "",
	"payment_setting.amount_discount": "{}", "payment_setting.amount_options": "[10,20,50,100,200,500]",
	"quota_setting.enable_free_model_pre_consume": "true", "theme.frontend": "default", "token_setting.max_user_tokens": "1000",
}

// KnownOption reports whether something here reads or shows an option.
func KnownOption(key string) bool {
	_, known := optionDefaults[key]
	return known || slices.Contains(ledger.PriceOptions(), key)
}

// option returns the value of an option as it is in force on this node.
func (c *Console) option(key string) string {
	options := c.cfg.Catalog.Routes().Settings.Options
	if v, ok := options[key]; ok {
		return v
	}
	if v, ok := ledger.EffectiveOption(options, key); ok {
		return v
	}
	return optionDefaults[key]
}

// optionQuota returns an option that is a whole number of at least 0: its default if it does not parse.
func (c *Console) optionQuota(key string) int64 {
	n, err := strconv.ParseInt(strings.TrimSpace(c.option(key)), 10, 64)
	if err != nil || n < 0 || n > sqlstore.MaxGrant {
		n, _ = strconv.ParseInt(optionDefaults[key], 10, 64)
	}
	return n
}

// optionNumber returns an option that is a number as JSON shows it.
func (c *Console) optionNumber(key string) json.Number {
	for _, text := range []string{strings.TrimSpace(c.option(key)), optionDefaults[key]} {
		if _, err := strconv.ParseFloat(text, 64); err == nil && json.Valid([]byte(text)) {
			return json.Number(text)
		}
	}
	return "0"
}

// optionFloat is optionNumber for what is only shown, never billed.
func (c *Console) optionFloat(key string) float64 {
	f, err := c.optionNumber(key).Float64()
	if err != nil {
		return 0
	}
	return f
}

func (c *Console) optionOn(key string) bool { return c.option(key) == "true" }

// secretOption reports whether an option holds a secret, which no answer shows. New API decides by the name's end, too.
func secretOption(key string) bool {
	lower := strings.ToLower(key)
	return slices.ContainsFunc([]string{"token", "secret", "key"}, func(end string) bool { return strings.HasSuffix(lower, end) })
}

type optionView struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// listOptions answers GET /api/option/: what is stored, and the default of what is not.
func listOptions(x *call) error {
	stored, err := x.console.cfg.Store.Options(x.ctx())
	if err != nil {
		return err
	}
	all := map[string]string{}
	for key, value := range optionDefaults {
		all[key] = value
	}
	for _, key := range ledger.PriceOptions() {
		if value, ok := ledger.EffectiveOption(stored, key); ok {
			all[key] = value
		}
	}
	for key, value := range stored {
		all[key] = value
	}
	views := make([]optionView, 0, len(all))
	for key, value := range all {
		if !secretOption(key) {
			views = append(views, optionView{key, value})
		}
	}
	slices.SortFunc(views, func(a, b optionView) int { return strings.Compare(a.Key, b.Key) })
	return x.data(views)
}

// setOption answers PUT /api/option/. A value that would not be understood is refused and not stored; New API stores it and
// empties the price table.
func setOption(x *call) error {
	var in struct {
		Key   string
		Value json.RawMessage
	}
	if err := x.read(&in); err != nil {
		return err
	}
	value, ok := optionText(in.Value)
	if in.Key == "" || len(in.Key) > 191 || !ok {
		return wrong("key must be a string of 1 to 191 bytes, value a string, a number, true or false")
	}
	if len(value) > sqlstore.MaxOptionBytes {
		return no("an option has at most %d bytes", sqlstore.MaxOptionBytes)
	}
	if err := x.checkOption(in.Key, value); err != nil {
		return err
	}
	if err := x.console.cfg.Store.SetOption(x.ctx(), in.Key, value); err != nil {
		return err
	}
	x.effective()
	return x.done()
}

// optionText is a JSON scalar as the text that is stored.
func optionText(raw json.RawMessage) (string, bool) {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 {
		return "", false
	}
	switch raw[0] {
	case '"':
		var s string
		err := json.Unmarshal(raw, &s)
		return s, err == nil
	case '{', '[', 'n':
		return "", false
	}
	return string(raw), true
}

// optionChecks are what the relay and this package need of an option to understand it.
var optionChecks = map[string]func(value string) error{
	ledger.OptionQuotaPerUnit:       wholeNumber(1 << 40),
	"RetryTimes":                    wholeNumber(catalog.MaxRetries),
	"QuotaForNewUser":               wholeNumber(sqlstore.MaxGrant),
	"QuotaForInvitee":               wholeNumber(sqlstore.MaxGrant),
	"QuotaForInviter":               wholeNumber(sqlstore.MaxGrant),
	"token_setting.max_user_tokens": wholeNumber(1_000_000),
	"AutomaticRetryStatusCodes":     statusSet,
	"AutomaticDisableStatusCodes":   statusSet,
	"AutoGroups":                    jsonOf[[]string]("a JSON list of groups"),
	"UserUsableGroups":              jsonOf[map[string]string]("a JSON object, group to label"),
	"Price":                         decimal,
	"USDExchangeRate":               decimal,
	"general_setting.custom_currency_exchange_rate": decimal,
}

func wholeNumber(most int64) func(string) error {
	return func(value string) error {
		if n, err := strconv.ParseInt(value, 10, 64); err != nil || n < 0 || n > most {
			return no("%.40q is no whole number from 0 to %d", value, most)
		}
		return nil
	}
}

func statusSet(value string) error {
	if _, bad := catalog.ParseStatusSet(value); len(bad) > 0 {
		return no("%.100q are no HTTP statuses or ranges of them", strings.Join(bad, ","))
	}
	return nil
}

func jsonOf[T any](what string) func(string) error {
	return func(value string) error {
		var v T
		if err := json.Unmarshal([]byte(value), &v); err != nil {
			return no("the value is not %s: %v", what, err)
		}
		return nil
	}
}

func decimal(value string) error {
	if f, err := strconv.ParseFloat(value, 64); err != nil || f < 0 || !json.Valid([]byte(value)) {
		return no("%.40q is no number of at least 0", value)
	}
	return nil
}

// checkOption refuses a value that would not be understood. A price option is checked in the company of all others.
func (x *call) checkOption(key, value string) error {
	if check := optionChecks[key]; check != nil {
		if err := check(value); err != nil {
			return no("option %s: %v", key, err)
		}
	}
	if slices.Contains(ledger.PriceOptions(), key) {
		options, err := x.console.cfg.Store.Options(x.ctx())
		if err != nil {
			return err
		}
		options[key] = value
		if _, err := ledger.ParsePriceBookWith(options, rating.Compiler(x.console.now)); err != nil {
			return no("%v", err)
		}
		return nil
	}
	onOff := strings.HasSuffix(key, "Enabled") || strings.HasSuffix(key, ".enabled") || strings.HasSuffix(key, "_enabled")
	if onOff && value != "true" && value != "false" {
		return no("%.40q is neither true nor false", value)
	}
	return nil
}
