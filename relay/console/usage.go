package console

import (
	"net/http"
	"strings"

	"ledgerline/ledger/sqlstore"
)

// holder is who presents an API key.
type holder struct {
	token *sqlstore.TokenView
	user  int64
	on    bool // the key may be used: enabled and not expired, its user too
}

// holder finds the key of a request, whatever its state: who has used a key up wants to see that. Errors are in the
// envelope of the management API.
func (x *call) holder() (holder, error) {
	key := strings.TrimSpace(x.Request().Header.Get("Authorization"))
	if len(key) > 7 && strings.EqualFold(key[:7], "bearer ") {
		key = strings.TrimSpace(key[7:])
	}
	if key == "" {
		return holder{}, &refusal{status: http.StatusUnauthorized, message: "Token not provided"}
	}
	key, _, _ = strings.Cut(strings.TrimPrefix(key, "sk-"), "-")
	found, user := x.console.cfg.Catalog.Token(key)
	if found == nil || key == "" || user == nil {
		return holder{}, &refusal{status: http.StatusUnauthorized, message: "Invalid token"}
	}
	t, err := x.console.cfg.Store.TokenView(x.ctx(), 0, found.ID)
	if err != nil {
		return holder{}, err
	}
	expired := t.ExpiredTime != -1 && t.ExpiredTime <= x.console.now().Unix()
	on := user.Enabled() && !expired && (t.Status == sqlstore.TokenEnabled || t.Status == sqlstore.TokenExhausted)
	return holder{t, user.ID, on}, nil
}

// until is a key's expiry as these endpoints show it: 0 for never.
func until(t *sqlstore.TokenView) int64 { return max(t.ExpiredTime, 0) }

type tokenUsage struct {
	Object      string          `json:"object"`
	Name        string          `json:"name"`
	Granted     int64           `json:"total_granted"`
	Used        int64           `json:"total_used"`
	Available   int64           `json:"total_available"`
	Unlimited   bool            `json:"unlimited_quota"`
	Models      map[string]bool `json:"model_limits"`
	ModelsBound bool            `json:"model_limits_enabled"`
	ExpiresAt   int64           `json:"expires_at"`
}

// usageOfToken answers GET /api/usage/token/, to the holder of a key.
func usageOfToken(x *call) error {
	h, err := x.holder()
	if err != nil {
		return err
	}
	t := h.token
	models := map[string]bool{}
	for _, m := range splitList(t.ModelLimits) {
		models[m] = true
	}
	return x.JSON(http.StatusOK, struct {
		Code    bool       `json:"code"`
		Message string     `json:"message"`
		Data    tokenUsage `json:"data"`
	}{true, "ok", tokenUsage{
		"token_usage", t.Name, t.Remain + t.Used, t.Used, t.Remain, t.Unlimited, models, t.ModelLimitsEnabled, until(t),
	}})
}

// unlimitedDollars is what New API shows as the limit of a key without one.
const unlimitedDollars = 100_000_000

// billingFigures are quotas to show on OpenAI's old billing endpoints: the key's, or the user's if the operator wants so.
type billingFigures struct {
	left, used, until int64
	unlimited         bool
}

// relayError is a refusal in the shape of the relay endpoints.
type relayError struct {
	Error relayErrorBody `json:"error"`
}

type relayErrorBody struct {
	Code    string  `json:"code"`
	Message string  `json:"message"`
	Type    string  `json:"type"`
	Param   *string `json:"param,omitempty"`
}

func (x *call) billing() (f billingFigures, refused bool, err error) {
	h, err := x.holder()
	if err == nil && !h.on {
		err = &refusal{status: http.StatusUnauthorized, message: "Invalid token"}
	}
	if r, ok := err.(*refusal); ok { //nolint:errorlint // made above, never wrapped
		return f, true, x.JSON(r.status, relayError{relayErrorBody{Message: "Invalid token (request id: " + x.id + ")", Type: "new_api_error"}})
	}
	if err != nil {
		return f, false, err
	}
	f.until = until(h.token)
	if x.console.option("DisplayTokenStatEnabled") != "false" {
		f.left, f.used, f.unlimited = h.token.Remain, h.token.Used, h.token.Unlimited
		return f, false, nil
	}
	u, err := x.console.cfg.Store.UserView(x.ctx(), h.user)
	if err != nil {
		return f, false, err
	}
	f.left, f.used = u.Quota, u.UsedQuota
	return f, false, nil
}

// shown converts quota units to what the operator chose to show. It is a figure for the eye, never billed with (L8).
func (c *Console) shown(quota int64) float64 {
	kind := c.option("general_setting.quota_display_type")
	if c.option("DisplayInCurrencyEnabled") == "false" || kind == "TOKENS" {
		return float64(quota)
	}
	dollars := float64(quota) / max(1, c.optionFloat("QuotaPerUnit"))
	switch kind {
	case "CNY":
		return dollars * c.optionFloat("USDExchangeRate")
	case "CUSTOM":
		return dollars * c.optionFloat("general_setting.custom_currency_exchange_rate")
	}
	return dollars
}

// billingSubscription answers GET /dashboard/billing/subscription, also under /v1.
func billingSubscription(x *call) error {
	f, refused, err := x.billing()
	if err != nil || refused {
		return err
	}
	limit := x.console.shown(f.left + f.used)
	if f.unlimited {
		limit = unlimitedDollars
	}
	return x.JSON(http.StatusOK, struct {
		Object     string  `json:"object"`
		HasPayment bool    `json:"has_payment_method"`
		Soft       float64 `json:"soft_limit_usd"`
		Hard       float64 `json:"hard_limit_usd"`
		System     float64 `json:"system_hard_limit_usd"`
		Until      int64   `json:"access_until"`
	}{"billing_subscription", true, limit, limit, limit, f.until})
}

// billingUsage answers GET /dashboard/billing/usage, also under /v1. The dates asked for are ignored, as New API does.
func billingUsage(x *call) error {
	f, refused, err := x.billing()
	if err != nil || refused {
		return err
	}
	return x.JSON(http.StatusOK, struct {
		Object string  `json:"object"`
		Total  float64 `json:"total_usage"` // hundredths
	}{"list", x.console.shown(f.used) * 100})
}
