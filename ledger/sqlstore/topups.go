package sqlstore

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// The states of a payment order that matter here, as New API names them; it also knows failed and expired.
const (
	OrderPending = "pending"
	OrderDone    = "success"
)

// ProviderEpay is the provider whose orders name US dollars (of QuotaPerUnit units each), as recorded.
const ProviderEpay = "epay"

// TopUp is an order of quota for money.
type TopUp struct {
	ID, UserID   int64
	Amount       int64   // what was ordered: US dollars for ProviderEpay
	Money        float64 // the price, in the currency of the payment: shown, never billed with
	TradeNo      string
	Method       string // alipay, wxpay, stripe …
	Provider     string // "" in orders of older versions
	CreateTime   int64  // Unix seconds, like CompleteTime
	CompleteTime int64
	Status       string
}

// provider returns who takes the payment of an order. Orders of versions that did not name the provider are epay's, unless the method
// is the name of another provider.
func (o *TopUp) provider() string {
	if o.Provider != "" {
		return o.Provider
	}
	for _, other := range []string{"stripe", "creem", "waffo"} {
		if strings.HasPrefix(o.Method, other) {
			return other
		}
	}
	return ProviderEpay
}

var topUpRows = source[TopUp]{"top_ups", "`id`, `user_id`, `amount`, `money`, `trade_no`, `payment_method`, `payment_provider`, `create_time`, `complete_time`, `status`", scanTopUp, nil}

func scanTopUp(scan func(...any) error) (*TopUp, error) {
	var o TopUp
	var user, amount, created, completed sql.NullInt64
	var money sql.NullFloat64
	var trade, method, provider, status sql.NullString
	err := scan(&o.ID, &user, &amount, &money, &trade, &method, &provider, &created, &completed, &status)
	o.UserID, o.Amount, o.CreateTime, o.CompleteTime, o.Money = user.Int64, amount.Int64, created.Int64, completed.Int64, money.Float64
	o.TradeNo, o.Method, o.Provider, o.Status = trade.String, method.String, provider.String, status.String
	return &o, err
}

// TopUps lists orders of a user, or of all if user is 0, newest first, with the number of all that match. keyword is a part of the
// trade number.
func (s *Store) TopUps(ctx context.Context, user int64, keyword string, page Page) (list []*TopUp, total int, err error) {
	w := &conditions{}
	if user != 0 {
		w.add("`user_id` = ?", user)
	}
	if keyword != "" {
		w.add("`trade_no` LIKE ? ESCAPE '!'", like(keyword))
	}
	err = s.View(ctx, func(tx *Tx) error {
		list, total, err = listed(ctx, tx, query[TopUp]{topUpRows, w, "`id` DESC", page})
		return err
	})
	if err != nil {
		return nil, 0, fmt.Errorf("list orders: %w", err)
	}
	return list, total, nil
}

// The reasons why an order is not completed, beside ErrNotFound.
var (
	ErrOrderState    = errors.New("the order is not pending")
	ErrOrderProvider = errors.New("what the amount of this provider's orders means is not known here")
	ErrOrderTradeNo  = errors.New("the order cannot be credited")
	ErrOrderAmount   = fmt.Errorf("the order's amount is not between 1 and what makes %d quota units", int64(MaxGrant))
)

// CompleteTopUp completes a pending order by hand: its user gets Amount × perUnit quota units. It returns the outbox key of the credit,
// which names the order, so that an order counts once whatever happens to its row; for one that is completed already it is "".
func (s *Store) CompleteTopUp(ctx context.Context, trade string, perUnit int64) (key string, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		key = ""
		o, err := pick(ctx, tx, topUpRows, " WHERE trade_no = ?", trade)
		if err != nil {
			return err
		}
		var name sql.NullString // users before orders, as everywhere
		if err := tx.QueryRow(ctx, "SELECT username FROM users WHERE id = ? AND deleted_at IS NULL"+tx.ForUpdate(), []any{o.UserID}, &name); err != nil {
			return err
		}
		if o, err = pick(ctx, tx, topUpRows, " WHERE trade_no = ?"+tx.ForUpdate(), trade); err != nil {
			return err
		}
		switch {
		case o.TradeNo != trade: // the column's collation may not tell letters apart
			return ErrNotFound
		case o.Status == OrderDone:
			return nil
		case o.Status != OrderPending:
			return ErrOrderState
		case o.provider() != ProviderEpay:
			return ErrOrderProvider
		case perUnit <= 0 || o.Amount <= 0 || o.Amount > MaxGrant/perUnit:
			return ErrOrderAmount
		}
		// The column takes 255 characters. The credit's key, which makes the order count once, has room for fewer.
		if spare := maxKey - utf8.RuneCountInString(businessKey(o.UserID, "topup", o.TradeNo)); spare < 0 {
			length := utf8.RuneCountInString(o.TradeNo)
			return fmt.Errorf("%w: its trade_no has %d characters, at most %d are allowed", ErrOrderTradeNo, length, length+spare)
		}
		err = tx.update(ctx, "top_ups", o.ID, []assignment{{"status", OrderDone}, {"complete_time", tx.s.now().Unix()}})
		if err != nil {
			return err
		}
		note := fmt.Sprintf("order %s completed by an administrator: $%d, paid %.2f", o.TradeNo, o.Amount, o.Money)
		key, err = tx.grantOnce(ctx, credit{o.UserID, name.String, o.Amount * perUnit, "topup", note}, o.TradeNo)
		if errors.Is(err, ErrExists) {
			return ErrOrderState // it was credited, and somebody set its row back
		}
		if err != nil {
			return err
		}
		return tx.audit(ctx, note)
	})
	if err != nil {
		return "", fmt.Errorf("complete an order: %w", err)
	}
	return key, nil
}
