package console

import (
	"encoding/json"
	"errors"
	"strings"

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
)

type topUpView struct {
	ID           int64   `json:"id"`
	UserID       int64   `json:"user_id"`
	Amount       int64   `json:"amount"`
	Money        float64 `json:"money"`
	TradeNo      string  `json:"trade_no"`
	Method       string  `json:"payment_method"`
	Provider     string  `json:"payment_provider"`
	CreateTime   int64   `json:"create_time"`
	CompleteTime int64   `json:"complete_time"`
	Status       string  `json:"status"`
}

// listTopUps answers GET /api/user/topup: everybody's orders.
func listTopUps(x *call) error { return x.topUps(0) }

// listOwnTopUps answers GET /api/user/topup/self.
func listOwnTopUps(x *call) error { return x.topUps(x.me.ID) }

func (x *call) topUps(user int64) error {
	p := x.page()
	list, total, err := x.console.cfg.Store.TopUps(x.ctx(), user, x.QueryParam("keyword"), p.rows())
	if err != nil {
		return err
	}
	views := make([]topUpView, len(list))
	for i, o := range list {
		views[i] = topUpView{o.ID, o.UserID, o.Amount, o.Money, o.TradeNo, o.Method, o.Provider, o.CreateTime, o.CompleteTime, o.Status}
	}
	return x.list(p, total, views)
}

// completeTopUp answers POST /api/user/topup/complete: an administrator says that an order was paid. Repeated, it changes nothing.
func completeTopUp(x *call) error {
	var in struct {
		TradeNo string `json:"trade_no"`
	}
	if err := x.read(&in); err != nil {
		return err
	}
	in.TradeNo = strings.TrimSpace(in.TradeNo)
	if in.TradeNo == "" {
		return no("trade_no is missing")
	}
	key, err := x.console.cfg.Store.CompleteTopUp(x.ctx(), in.TradeNo, x.console.optionQuota(ledger.OptionQuotaPerUnit))
	switch {
	case errors.Is(err, sqlstore.ErrNotFound):
		return no("there is no such order, or its user is deleted")
	case errors.Is(err, sqlstore.ErrOrderState), errors.Is(err, sqlstore.ErrOrderAmount), errors.Is(err, sqlstore.ErrOrderTradeNo):
		return no("%v", errors.Unwrap(err))
	case errors.Is(err, sqlstore.ErrOrderProvider):
		return no("%v: give the quota by /api/user/manage (add_quota)", errors.Unwrap(err))
	case err != nil:
		return err
	}
	x.effective(key)
	return x.done()
}

// topUpInfo is what a page for topping up needs to know. Nothing can be paid here, codes can be redeemed.
type topUpInfo struct {
	AmountOptions   json.RawMessage `json:"amount_options"`
	CreemProducts   string          `json:"creem_products"`
	Discount        json.RawMessage `json:"discount"`
	Creem           bool            `json:"enable_creem_topup"`
	Online          bool            `json:"enable_online_topup"`
	Redemption      bool            `json:"enable_redemption"`
	Stripe          bool            `json:"enable_stripe_topup"`
	Pancake         bool            `json:"enable_waffo_pancake_topup"`
	Waffo           bool            `json:"enable_waffo_topup"`
	Min             int64           `json:"min_topup"`
	Methods         []any           `json:"pay_methods"`
	Compliance      bool            `json:"payment_compliance_confirmed"`
	ComplianceTerms string          `json:"payment_compliance_terms_version"`
	StripeMin       int64           `json:"stripe_min_topup"`
	Link            string          `json:"topup_link"`
	WaffoMin        int64           `json:"waffo_min_topup"`
	PancakeMin      int64           `json:"waffo_pancake_min_topup"`
	WaffoMethods    []any           `json:"waffo_pay_methods"`
}

// topUpInformation answers GET /api/user/topup/info.
func topUpInformation(x *call) error {
	c := x.console
	least := c.optionQuota("MinTopUp")
	return x.data(topUpInfo{
		AmountOptions: c.optionJSON("payment_setting.amount_options"), Discount: c.optionJSON("payment_setting.amount_discount"),
		CreemProducts: "[]", Redemption: true, Min: least, Methods: []any{}, ComplianceTerms: "v1",
		StripeMin: least, Link: c.option("TopUpLink"), WaffoMin: least, PancakeMin: least,
	})
}

// optionJSON returns an option that is JSON: its default if it does not parse.
func (c *Console) optionJSON(key string) json.RawMessage {
	if text := c.option(key); json.Valid([]byte(text)) {
		return json.RawMessage(text)
	}
	return json.RawMessage(optionDefaults[key])
}
