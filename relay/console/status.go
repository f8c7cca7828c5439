package console

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"

	"ledgerline/ledger/sqlstore"
)

// status answers GET /api/status. Health checks look for "success": true in it.
func status(x *call) error {
	c := x.console
	done := c.setUp(x)
	d := map[string]any{
		"version": c.cfg.Version, "start_time": c.started.Unix(), "setup": done, "system_name": c.option("SystemName"), "logo": c.option("Logo"),
		"footer_html": c.option("Footer"), "server_address": c.option("ServerAddress"), "theme": c.option("theme.frontend"),
		"docs_link": c.option("general_setting.docs_link"), "HeaderNavModules": c.option("HeaderNavModules"),
		"SidebarModulesAdmin": c.option("SidebarModulesAdmin"), "data_export_default_time": c.option("DataExportDefaultTime"),
		"quota_per_unit": c.optionNumber("QuotaPerUnit"), "price": c.optionNumber("Price"), "usd_exchange_rate": c.optionNumber("USDExchangeRate"),
		"stripe_unit_price": c.optionNumber("StripeUnitPrice"), "quota_display_type": c.option("general_setting.quota_display_type"),
		"custom_currency_symbol":        c.option("general_setting.custom_currency_symbol"),
		"custom_currency_exchange_rate": c.optionNumber("general_setting.custom_currency_exchange_rate"),
		"chats":                         c.optionList("Chats"),
		"api_info":                      c.optionList("console_setting.api_info"),
		"announcements":                 c.optionList("console_setting.announcements"),
		"faq":                           c.optionList("console_setting.faq"),
		"privacy_policy_enabled":        c.option("legal.privacy_policy") != "",
		"user_agreement_enabled":        c.option("legal.user_agreement") != "",
		"enable_batch_update":           true, // balances are always written in batches
	}
	for name, key := range map[string]string{
		"display_in_currency": "DisplayInCurrencyEnabled", "enable_data_export": "DataExportEnabled", "enable_drawing": "DrawingEnabled",
		"enable_task": "TaskEnabled", "email_verification": "EmailVerificationEnabled", "password_login_enabled": "PasswordLoginEnabled",
		"password_register_enabled": "PasswordRegisterEnabled", "register_enabled": "RegisterEnabled", "demo_site_enabled": "DemoSiteEnabled",
		"self_use_mode_enabled": "SelfUseModeEnabled", "default_collapse_sidebar": "DefaultCollapseSidebar",
		"default_use_auto_group": "DefaultUseAutoGroup", "api_info_enabled": "console_setting.api_info_enabled",
		"announcements_enabled": "console_setting.announcements_enabled", "faq_enabled": "console_setting.faq_enabled",
	} {
		d[name] = c.optionOn(key)
	}
	// What this program does not do, in the words of those that ask.
	for _, name := range []string{
		"checkin_enabled", "discord_oauth", "github_oauth", "linuxdo_oauth", "mj_notify_enabled", "oidc_enabled", "passkey_allow_insecure",
		"passkey_login", "telegram_oauth", "turnstile_check", "uptime_kuma_enabled", "wechat_login",
	} {
		d[name] = false
	}
	for _, name := range []string{
		"discord_client_id", "github_client_id", "linuxdo_client_id", "oidc_authorization_endpoint", "oidc_client_id", "oidc_display_name",
		"passkey_attachment", "passkey_display_name", "passkey_origins", "passkey_rp_id", "passkey_user_verification", "telegram_bot_name",
		"turnstile_site_key", "wechat_qrcode",
	} {
		d[name] = ""
	}
	d["linuxdo_minimum_trust_level"] = 0
	if c.cfg.StatusExtra != nil {
		for name, value := range c.cfg.StatusExtra() {
			d[name] = value
		}
	}
	return x.data(d)
}

// setUp reports whether set-up is done. Once it is, it stays so, and the status asks no database.
func (c *Console) setUp(x *call) bool {
	if c.isSetUp.Load() {
		return true
	}
	done, _, err := c.cfg.Store.SetUp(x.ctx())
	if err != nil {
		c.log.Warn("the status does not know whether set-up is done", "error", err)
		return false
	}
	if done {
		c.isSetUp.Store(true)
	}
	return done
}

// optionList is an option that holds a JSON list; an empty one if it does not.
func (c *Console) optionList(key string) []any {
	list := []any{}
	if json.Unmarshal([]byte(c.option(key)), &list) != nil || list == nil {
		return []any{}
	}
	return list
}

// text answers with an option's text: the notice, the pages about the site.
func text(key string) handler {
	return func(x *call) error { return x.data(x.console.option(key)) }
}

type setupView struct {
	Status       bool   `json:"status"`
	RootInit     bool   `json:"root_init"`
	DatabaseType string `json:"database_type"`
}

type setupAnswer struct {
	Data    setupView `json:"data"`
	Success bool      `json:"success"`
}

// setupState answers GET /api/setup.
func setupState(x *call) error {
	done, root, err := x.console.cfg.Store.SetUp(x.ctx())
	if err != nil {
		return err
	}
	view := setupView{Status: done}
	if !done {
		view.RootInit, view.DatabaseType = root, "sqlite"
		if x.console.cfg.Store.IsMySQL() {
			view.DatabaseType = "mysql"
		}
	}
	return x.JSON(http.StatusOK, setupAnswer{view, true})
}

var errSetUp = no("the system is set up already")

// setup answers POST /api/setup: the first user by hand. A start makes one by itself, so this is for a database that a start without
// that right left empty.
func setup(x *call) error {
	if err := x.checkOrigin(true); err != nil {
		return err
	}
	var in struct {
		Username, Password, ConfirmPassword string
		SelfUseModeEnabled, DemoSiteEnabled bool
	}
	if err := x.read(&in); err != nil {
		return err
	}
	store := x.console.cfg.Store
	if done, _, err := store.SetUp(x.ctx()); err != nil {
		return err
	} else if done {
		return errSetUp
	}
	in.Username = strings.TrimSpace(in.Username)
	if err := checkName("user name", in.Username); err != nil {
		return err
	}
	if in.Password != in.ConfirmPassword {
		return no("the two passwords are not the same")
	}
	if err := checkPassword(in.Password); err != nil {
		return err
	}
	hash, err := x.console.hash(x, in.Password)
	if err != nil {
		return err
	}
	err = store.SetUpRoot(x.ctx(), in.Username, hash, map[string]string{
		"SelfUseModeEnabled": word(in.SelfUseModeEnabled), "DemoSiteEnabled": word(in.DemoSiteEnabled),
	})
	if errors.Is(err, sqlstore.ErrExists) {
		return errSetUp
	}
	if err != nil {
		return err
	}
	x.effective()
	return x.JSON(http.StatusOK, envelope{Success: true, Message: "the system is set up"})
}

func word(b bool) string {
	if b {
		return "true"
	}
	return "false"
}
