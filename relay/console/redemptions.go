package console

import (
	"errors"
	"strings"
	"time"
	"unicode/utf8"

	"ledgerline/ledger/sqlstore"
)

type redemptionView struct {
	ID           int64      `json:"id"`
	UserID       int64      `json:"user_id"`
	Key          string     `json:"key"`
	Status       int        `json:"status"`
	Name         string     `json:"name"`
	Quota        int64      `json:"quota"`
	CreatedTime  int64      `json:"created_time"`
	RedeemedTime int64      `json:"redeemed_time"`
	Count        int        `json:"count"`
	UsedBy       int64      `json:"used_user_id"`
	DeletedAt    *time.Time `json:"DeletedAt"`
	ExpiredTime  int64      `json:"expired_time"`
}

func viewRedemption(r *sqlstore.Redemption) redemptionView {
	return redemptionView{
		r.ID, r.UserID, r.Key, r.Status, r.Name, r.Quota, r.CreatedTime, r.RedeemedTime, 0, r.UsedBy, timeOrNull(r.DeletedAt), r.ExpiredTime,
	}
}

// redeem answers POST /api/user/topup: a redemption code for its quota. Guessing is slowed as failed logins are.
func redeem(x *call) error {
	var in struct{ Key string }
	if err := x.read(&in); err != nil {
		return err
	}
	failed := no("Redemption failed, please try again later")
	name := "redeem " + x.me.Username
	if x.console.throttle.wait(name, x.address()) > 0 {
		return failed
	}
	quota, key, err := x.console.cfg.Store.Redeem(x.ctx(), x.me.ID, strings.TrimSpace(in.Key))
	switch {
	case errors.Is(err, sqlstore.ErrCodeUsed), errors.Is(err, sqlstore.ErrCodeExpired):
		return failed // nobody guesses a code that there is; of many who redeem one at once all but one come here
	case errors.Is(err, sqlstore.ErrNotFound):
		x.console.throttle.failed(name, x.address())
		return failed
	case err != nil:
		return err
	}
	x.effective(key)
	return x.data(quota)
}

// listRedemptions answers GET /api/redemption/ and search.
func listRedemptions(x *call) error {
	p := x.page()
	list, total, err := x.console.cfg.Store.Redemptions(x.ctx(), x.QueryParam("keyword"), p.rows())
	if err != nil {
		return err
	}
	views := make([]redemptionView, len(list))
	for i, r := range list {
		views[i] = viewRedemption(r)
	}
	return x.list(p, total, views)
}

// getRedemption answers GET /api/redemption/:id.
func getRedemption(x *call) error {
	id, err := x.idParam()
	if err != nil {
		return err
	}
	r, err := x.console.cfg.Store.Redemption(x.ctx(), id)
	if err != nil {
		return err
	}
	return x.data(viewRedemption(r))
}

func (x *call) checkRedemption(name string, quota, expires int64) error {
	switch {
	case name == "" || utf8.RuneCountInString(name) > maxName:
		return no("the name of a code has 1 to %d characters", maxName)
	case quota <= 0 || quota > sqlstore.MaxGrant:
		return no("the quota of a code is 1 to %d units", int64(sqlstore.MaxGrant))
	case expires != 0 && expires < x.console.now().Unix():
		return no("expired_time is a time to come, or 0 for never")
	}
	return nil
}

// createRedemptions answers POST /api/redemption/.
func createRedemptions(x *call) error {
	var in struct {
		Name        string
		Quota       int64
		Count       int
		ExpiredTime int64 `json:"expired_time"`
	}
	if err := x.read(&in); err != nil {
		return err
	}
	in.Name = strings.TrimSpace(in.Name)
	if err := x.checkRedemption(in.Name, in.Quota, in.ExpiredTime); err != nil {
		return err
	}
	switch {
	case in.Count < 1:
		return no("the count must be above zero")
	case in.Count > sqlstore.MaxCodes:
		return no("Maximum %d redemption codes can be generated at once", sqlstore.MaxCodes)
	}
	codes, err := x.console.cfg.Store.CreateRedemptions(x.ctx(), sqlstore.Redemption{
		UserID: x.me.ID, Name: in.Name, Quota: in.Quota, ExpiredTime: in.ExpiredTime,
	}, in.Count)
	if err != nil {
		return err
	}
	return x.data(codes)
}

// updateRedemption answers PUT /api/redemption/.
func updateRedemption(x *call) error {
	var in struct {
		ID          int64
		Name        string
		Quota       int64
		Status      int
		ExpiredTime int64 `json:"expired_time"`
	}
	if err := x.read(&in); err != nil {
		return err
	}
	statusOnly := x.QueryParam("status_only") != ""
	r, err := x.console.cfg.Store.EditRedemption(x.ctx(), in.ID, func(r *sqlstore.Redemption) error {
		if r.Status == sqlstore.RedemptionUsed {
			return no("the code has been used")
		}
		if statusOnly {
			if in.Status != sqlstore.RedemptionEnabled && in.Status != sqlstore.RedemptionDisabled {
				return wrong("status must be %d (enabled) or %d (disabled)", sqlstore.RedemptionEnabled, sqlstore.RedemptionDisabled)
			}
			r.Status = in.Status
			return nil
		}
		r.Name, r.Quota, r.ExpiredTime = strings.TrimSpace(in.Name), in.Quota, in.ExpiredTime
		return x.checkRedemption(r.Name, r.Quota, r.ExpiredTime)
	})
	if err != nil {
		return err
	}
	return x.data(viewRedemption(r))
}

// deleteRedemption answers DELETE /api/redemption/:id.
func deleteRedemption(x *call) error {
	id, err := x.idParam()
	if err != nil {
		return err
	}
	_, err = x.console.cfg.Store.EditRedemption(x.ctx(), id, func(r *sqlstore.Redemption) error { r.DeletedAt = x.console.now(); return nil })
	if err != nil {
		return err
	}
	return x.done()
}

// deleteInvalidRedemptions answers DELETE /api/redemption/invalid.
func deleteInvalidRedemptions(x *call) error {
	n, err := x.console.cfg.Store.DeleteInvalidRedemptions(x.ctx())
	if err != nil {
		return err
	}
	return x.data(n)
}
