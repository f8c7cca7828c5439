package console

import (
	"encoding/json"
	"net/netip"
	"strings"
	"time"
	"unicode/utf8"

	"ledgerline/ledger/sqlstore"
)

// tokenView is an API key as its owner sees it. The key itself is masked; POST /api/token/:id/key shows it.
type tokenView struct {
	ID                 int64           `json:"id"`
	UserID             int64           `json:"user_id"`
	Key                string          `json:"key"`
	Status             int             `json:"status"`
	Name               string          `json:"name"`
	CreatedTime        int64           `json:"created_time"`
	AccessedTime       int64           `json:"accessed_time"`
	ExpiredTime        int64           `json:"expired_time"`
	RemainQuota        int64           `json:"remain_quota"`
	Unlimited          bool            `json:"unlimited_quota"`
	ModelLimitsEnabled bool            `json:"model_limits_enabled"`
	ModelLimits        string          `json:"model_limits"`
	AllowIPs           string          `json:"allow_ips"`
	UsedQuota          int64           `json:"used_quota"`
	Group              string          `json:"group"`
	CrossGroupRetry    bool            `json:"cross_group_retry"`
	DeletedAt          *time.Time      `json:"DeletedAt"`
	AutoGroups         json.RawMessage `json:"auto_groups"`
}

func viewToken(t *sqlstore.TokenView) tokenView {
	v := tokenView{
		ID: t.ID, UserID: t.UserID, Key: maskedToken(&t.TokenRow), Status: t.Status, Name: t.Name, CreatedTime: t.CreatedTime, AccessedTime: t.AccessedTime,
		ExpiredTime: t.ExpiredTime, RemainQuota: t.Remain, Unlimited: t.Unlimited, ModelLimitsEnabled: t.ModelLimitsEnabled, ModelLimits: t.ModelLimits,
		AllowIPs: t.AllowIPs, UsedQuota: t.Used, Group: t.Group, CrossGroupRetry: t.CrossGroupRetry, DeletedAt: timeOrNull(t.DeletedAt),
		AutoGroups: json.RawMessage("null"),
	}
	if json.Valid([]byte(t.AutoGroups)) {
		v.AutoGroups = json.RawMessage(t.AutoGroups)
	}
	return v
}

// maskedToken hides a key; of one that is stored sealed only the end is known.
func maskedToken(t *sqlstore.TokenRow) string {
	if t.Sealed {
		return "**********" + t.Key[len(t.Key)-4:]
	}
	return masked(t.Key)
}

func masked(key string) string {
	if len(key) < 16 {
		return strings.Repeat("*", len(key))
	}
	return key[:4] + "**********" + key[len(key)-4:]
}

// tokenBody is what creates or changes a key. Members that are missing keep what they were, or take the default.
type tokenBody struct {
	ID                 int64
	Name               *string
	Status             *int
	ExpiredTime        *int64           `json:"expired_time"`
	RemainQuota        *int64           `json:"remain_quota"`
	Unlimited          *bool            `json:"unlimited_quota"`
	ModelLimitsEnabled *bool            `json:"model_limits_enabled"`
	ModelLimits        *string          `json:"model_limits"`
	AllowIPs           *string          `json:"allow_ips"`
	Group              *string          `json:"group"`
	CrossGroupRetry    *bool            `json:"cross_group_retry"`
	AutoGroups         *json.RawMessage `json:"auto_groups"`
}

// Bounds of a key's texts (L7): New API's, or those of the columns.
const (
	maxTokenName = 50 // characters
	maxLimits    = 16 << 10
	maxAllowIPs  = 191 // the column
	maxAutoList  = 32
)

// apply puts the body's members into a row and checks them.
func (b *tokenBody) apply(x *call, t *sqlstore.TokenRow) error {
	set(&t.Name, b.Name)
	set(&t.ExpiredTime, b.ExpiredTime)
	set(&t.Unlimited, b.Unlimited)
	set(&t.ModelLimitsEnabled, b.ModelLimitsEnabled)
	set(&t.ModelLimits, b.ModelLimits)
	set(&t.AllowIPs, b.AllowIPs)
	set(&t.Group, b.Group)
	set(&t.CrossGroupRetry, b.CrossGroupRetry)
	if b.AutoGroups != nil {
		if err := setAutoGroups(t, *b.AutoGroups); err != nil {
			return err
		}
	}
	if t.ExpiredTime == 0 {
		t.ExpiredTime = -1
	}
	switch {
	case utf8.RuneCountInString(t.Name) > maxTokenName:
		return no("Token name is too long")
	case b.RemainQuota != nil && *b.RemainQuota < 0 && !t.Unlimited:
		return no("Quota value cannot be negative")
	case b.RemainQuota != nil && *b.RemainQuota > sqlstore.MaxGrant:
		return no("Quota value exceeds the allowed maximum %d", int64(sqlstore.MaxGrant))
	case t.ExpiredTime < -1:
		return no("expired_time is a Unix time, or -1 for never")
	case len(t.ModelLimits) > maxLimits || len(t.AllowIPs) > maxAllowIPs:
		return no("model_limits has at most %d bytes, allow_ips %d", maxLimits, maxAllowIPs)
	}
	if err := checkNetworks(t.AllowIPs); err != nil {
		return err
	}
	return x.checkTokenGroup(t)
}

// set copies a value that is there.
func set[T any](into *T, from *T) {
	if from != nil {
		*into = *from
	}
}

// setAutoGroups stores the list of groups, which comes as a JSON list or as its text.
func setAutoGroups(t *sqlstore.TokenRow, raw json.RawMessage) error {
	var list []string
	var text string
	if json.Unmarshal(raw, &text) == nil && text != "" {
		raw = json.RawMessage(text)
	} else if string(raw) == `""` {
		raw = json.RawMessage("null")
	}
	if json.Unmarshal(raw, &list) != nil || len(list) > maxAutoList {
		return no("auto_groups is a list of at most %d groups", maxAutoList)
	}
	t.AutoGroups = ""
	if len(list) > 0 {
		out, err := json.Marshal(list)
		if err != nil {
			return err
		}
		t.AutoGroups = string(out)
	}
	return nil
}

// checkNetworks refuses an allow-list with an entry that the relay would not understand: it would lock the key's owner out.
func checkNetworks(text string) error {
	for line := range strings.SplitSeq(text, "\n") {
		entry := strings.TrimSpace(line)
		if entry == "" {
			continue
		}
		_, err1 := netip.ParseAddr(entry)
		_, err2 := netip.ParsePrefix(entry)
		if err1 != nil && err2 != nil {
			return no("%q in allow_ips is no IP address and no network such as 10.0.0.0/8", entry)
		}
	}
	return nil
}

// checkTokenGroup refuses a group that is not open to the caller.
func (x *call) checkTokenGroup(t *sqlstore.TokenRow) error {
	if t.Group == "" || t.Group == x.me.Group {
		return nil
	}
	if _, ok := x.console.usable(x.me.Group)[t.Group]; !ok {
		return no("the group %q is not open to you", t.Group)
	}
	return nil
}

// listTokens answers GET /api/token/ and /api/token/search.
func listTokens(x *call) error {
	p := x.page()
	f := sqlstore.TokenFilter{User: x.me.ID, Keyword: x.QueryParam("keyword"), Key: strings.TrimPrefix(x.QueryParam("token"), "sk-")}
	list, total, err := x.console.cfg.Store.Tokens(x.ctx(), f, p.rows())
	if err != nil {
		return err
	}
	views := make([]tokenView, len(list))
	for i, t := range list {
		views[i] = viewToken(t)
	}
	return x.list(p, total, views)
}

// getToken answers GET /api/token/:id.
func getToken(x *call) error {
	id, err := x.idParam()
	if err != nil {
		return err
	}
	t, err := x.console.cfg.Store.TokenView(x.ctx(), x.me.ID, id)
	if err != nil {
		return err
	}
	return x.data(viewToken(t))
}

// tokenKey answers POST /api/token/:id/key.
func tokenKey(x *call) error {
	id, err := x.idParam()
	if err != nil {
		return err
	}
	t, err := x.console.cfg.Store.TokenView(x.ctx(), x.me.ID, id)
	if err != nil {
		return err
	}
	if t.Sealed {
		return errSealedKey
	}
	return x.data(map[string]string{"key": t.Key})
}

// errSealedKey answers who asks for a key that nobody knows any more.
var errSealedKey = no("the key is stored as a hash and was shown when it was made; make a new one if it is lost")

// createToken answers POST /api/token/.
func createToken(x *call) error {
	var in tokenBody
	if err := x.read(&in); err != nil {
		return err
	}
	row := sqlstore.TokenRow{UserID: x.me.ID, ExpiredTime: -1}
	if err := in.apply(x, &row); err != nil {
		return err
	}
	store := x.console.cfg.Store
	n, err := store.CountTokens(x.ctx(), x.me.ID)
	if err != nil {
		return err
	}
	if most := x.console.optionQuota("token_setting.max_user_tokens"); int64(n) >= most {
		return no("you have %d keys, which is the most that is allowed", n)
	}
	var limit int64
	set(&limit, in.RemainQuota)
	if row.Unlimited {
		limit = 0
	}
	row, key, err := store.CreateToken(x.ctx(), row, limit)
	if err != nil {
		return err
	}
	x.effective(key)
	if row.Sealed { // it cannot be asked for afterwards
		return x.data(map[string]any{"id": row.ID, "key": row.Key})
	}
	return x.done()
}

// updateToken answers PUT /api/token/. remain_quota is what shall be left, as in New API.
func updateToken(x *call) error {
	var in tokenBody
	if err := x.read(&in); err != nil {
		return err
	}
	if in.ID <= 0 {
		return errID
	}
	statusOnly := x.QueryParam("status_only") != ""
	now := x.console.now().Unix()
	t, key, err := x.console.cfg.Store.EditToken(x.ctx(), x.me.ID, in.ID, func(e *sqlstore.TokenEdit) error {
		if statusOnly {
			return in.setStatus(e, now)
		}
		if err := in.apply(x, &e.TokenRow); err != nil {
			return err
		}
		if in.RemainQuota != nil {
			e.Raise = *in.RemainQuota - e.Remain
		}
		// A key that was switched off because it had expired or was used up works again as soon as it is not.
		expired := e.ExpiredTime != -1 && e.ExpiredTime <= now
		exhausted := !e.Unlimited && e.Remain+e.Raise <= 0
		if (e.Status == sqlstore.TokenExpired || e.Status == sqlstore.TokenExhausted) && !expired && !exhausted {
			e.Status = sqlstore.TokenEnabled
		}
		return nil
	})
	if err != nil {
		return err
	}
	x.effective(key)
	return x.data(viewToken(t))
}

var errTokenStatus = wrong("status must be %d (enabled) or %d (disabled)", sqlstore.TokenEnabled, sqlstore.TokenDisabled)

// setStatus enables or disables a key.
func (b *tokenBody) setStatus(e *sqlstore.TokenEdit, now int64) error {
	if b.Status == nil {
		return errTokenStatus
	}
	switch *b.Status {
	case sqlstore.TokenDisabled:
	case sqlstore.TokenEnabled:
		if e.ExpiredTime != -1 && e.ExpiredTime <= now {
			return no("the key has expired; change its expiry first, or make it last for ever")
		}
		if !e.Unlimited && e.Remain <= 0 {
			return no("the key's quota is used up; raise it first, or make it unlimited")
		}
	default:
		return errTokenStatus
	}
	e.Status = *b.Status
	return nil
}

// deleteToken answers DELETE /api/token/:id.
func deleteToken(x *call) error {
	id, err := x.idParam()
	if err != nil {
		return err
	}
	if _, _, err := x.console.cfg.Store.EditToken(x.ctx(), x.me.ID, id, func(e *sqlstore.TokenEdit) error { e.Delete = true; return nil }); err != nil {
		return err
	}
	x.effective()
	return x.done()
}

// maxBatch bounds the ids of one request (L7), as New API does.
const maxBatch = 100

// deleteTokens answers POST /api/token/batch.
func deleteTokens(x *call) error {
	ids, err := x.ids()
	if err != nil {
		return err
	}
	n, err := x.console.cfg.Store.DeleteTokens(x.ctx(), x.me.ID, ids)
	if err != nil {
		return err
	}
	x.effective()
	return x.data(n)
}

// ids reads a body {"ids": […]}.
func (x *call) ids() ([]int64, error) {
	var in struct{ IDs []int64 }
	if err := x.read(&in); err != nil {
		return nil, err
	}
	if len(in.IDs) == 0 || len(in.IDs) > maxBatch {
		return nil, no("ids must name 1 to %d rows", maxBatch)
	}
	return in.IDs, nil
}

// tokenKeys answers POST /api/token/batch/keys.
func tokenKeys(x *call) error {
	ids, err := x.ids()
	if err != nil {
		return err
	}
	keys := map[int64]string{}
	for _, id := range ids {
		t, err := x.console.cfg.Store.TokenView(x.ctx(), x.me.ID, id)
		if err != nil {
			return err
		}
		if t.Sealed {
			return errSealedKey
		}
		keys[id] = t.Key
	}
	return x.data(map[string]any{"keys": keys})
}
