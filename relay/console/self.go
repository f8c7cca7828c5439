package console

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
)

// selfView is a user as it sees itself.
type selfView struct {
	AffCode        string      `json:"aff_code"`
	AffCount       int64       `json:"aff_count"`
	AffHistory     int64       `json:"aff_history_quota"`
	AffQuota       int64       `json:"aff_quota"`
	DiscordID      string      `json:"discord_id"`
	DisplayName    string      `json:"display_name"`
	Email          string      `json:"email"`
	GitHubID       string      `json:"github_id"`
	Group          string      `json:"group"`
	ID             int64       `json:"id"`
	InviterID      int64       `json:"inviter_id"`
	LinuxDOID      string      `json:"linux_do_id"`
	OIDCID         string      `json:"oidc_id"`
	Permissions    permissions `json:"permissions"`
	Quota          int64       `json:"quota"`
	RequestCount   int64       `json:"request_count"`
	Role           int         `json:"role"`
	Setting        string      `json:"setting"`
	SidebarModules string      `json:"sidebar_modules"`
	Status         int         `json:"status"`
	Stripe         string      `json:"stripe_customer"`
	TelegramID     string      `json:"telegram_id"`
	UsedQuota      int64       `json:"used_quota"`
	Username       string      `json:"username"`
	WeChatID       string      `json:"wechat_id"`
}

type permissions struct {
	Admin           adminPermissions `json:"admin_permissions"`
	SidebarModules  map[string]any   `json:"sidebar_modules"`
	SidebarSettings bool             `json:"sidebar_settings"`
}

type adminPermissions struct {
	Channel channelPermissions `json:"channel"`
}

type channelPermissions struct {
	Operate        bool `json:"operate"`
	Read           bool `json:"read"`
	SecretView     bool `json:"secret_view"`
	SensitiveWrite bool `json:"sensitive_write"`
	Write          bool `json:"write"`
}

// permissionsOf says what New API's dashboard shows to a role. It decides nothing here.
func permissionsOf(role int) permissions {
	admin, root := role >= sqlstore.RoleAdmin, role >= sqlstore.RoleRoot
	p := permissions{Admin: channelsOf(role), SidebarModules: map[string]any{}, SidebarSettings: !root}
	switch {
	case root:
	case admin:
		p.SidebarModules["admin"] = map[string]any{"setting": false}
	default:
		p.SidebarModules["admin"] = false
	}
	return p
}

func channelsOf(role int) adminPermissions {
	admin, root := role >= sqlstore.RoleAdmin, role >= sqlstore.RoleRoot
	return adminPermissions{channelPermissions{Operate: admin, Read: admin, Write: admin, SecretView: root, SensitiveWrite: root}}
}

func viewSelf(u *sqlstore.UserView) selfView {
	return selfView{
		AffCode: u.AffCode, AffCount: u.AffCount, AffHistory: u.AffHistory, AffQuota: u.AffQuota, DiscordID: u.DiscordID, DisplayName: u.DisplayName,
		Email: u.Email, GitHubID: u.GitHubID, Group: u.Group, ID: u.ID, InviterID: u.InviterID, LinuxDOID: u.LinuxDOID, OIDCID: u.OIDCID,
		Permissions: permissionsOf(u.Role), Quota: u.Quota, RequestCount: u.RequestCount, Role: u.Role, Setting: u.Setting,
		SidebarModules: sidebarOf(u.Setting), Status: u.Status, Stripe: u.Stripe, TelegramID: u.TelegramID, UsedQuota: u.UsedQuota,
		Username: u.Username, WeChatID: u.WeChatID,
	}
}

// sidebarOf takes the sidebar's layout out of a user's setting.
func sidebarOf(setting string) string {
	var s struct {
		Modules string `json:"sidebar_modules"`
	}
	if json.Unmarshal([]byte(setting), &s) != nil {
		return ""
	}
	return s.Modules
}

// self answers GET /api/user/self.
func self(x *call) error { return x.data(viewSelf(x.me.UserView)) }

// updateSelf answers PUT /api/user/self: names, a new password with the old one, the sidebar.
func updateSelf(x *call) error {
	var in struct {
		Username    *string
		DisplayName *string `json:"display_name"`
		Password    string
		Original    string  `json:"original_password"`
		Sidebar     *string `json:"sidebar_modules"`
		Language    *string
	}
	if err := x.read(&in); err != nil {
		return err
	}
	hash, err := x.newPassword(in.Password, in.Original)
	if err != nil {
		return err
	}
	_, _, err = x.console.cfg.Store.EditUser(x.ctx(), x.me.ID, func(e *sqlstore.UserEdit) error {
		for _, name := range []struct {
			what string
			from *string
			into *string
		}{{"user name", in.Username, &e.Username}, {"display name", in.DisplayName, &e.DisplayName}} {
			if name.from == nil || strings.TrimSpace(*name.from) == "" {
				continue
			}
			*name.into = strings.TrimSpace(*name.from)
			if err := checkName(name.what, *name.into); err != nil {
				return err
			}
		}
		if hash != "" {
			e.Password, e.Revoke, e.Keep = hash, true, x.me.keep()
		}
		members := map[string]any{}
		if in.Sidebar != nil {
			members["sidebar_modules"] = *in.Sidebar
		}
		if in.Language != nil {
			members["language"] = *in.Language
		}
		return mergeSetting(&e.Setting, members)
	})
	if errors.Is(err, sqlstore.ErrExists) {
		return no("Username already exists or has been deleted")
	}
	if err != nil {
		return err
	}
	x.effective()
	return x.done()
}

// newPassword checks the old password and returns the hash of the new one, "" if there is none.
func (x *call) newPassword(password, original string) (string, error) {
	if password == "" {
		return "", nil
	}
	if err := checkPassword(password); err != nil {
		return "", err
	}
	if wait := x.console.throttle.wait(x.me.Username, x.address()); wait > 0 {
		return "", no("too many failed logins, try again later")
	}
	_, hash, err := x.console.cfg.Store.UserPassword(x.ctx(), x.me.Username)
	if err != nil {
		return "", err
	}
	if ok, _ := verifyPassword(hash, original); !ok {
		x.console.throttle.failed(x.me.Username, x.address())
		return "", no("the original password is not right")
	}
	return x.console.hash(x, password)
}

// maxSetting bounds a user's setting (L7), below the 64 KB of its column.
const maxSetting = 32 << 10

// mergeSetting puts members into a user's setting; the others stay.
func mergeSetting(setting *string, members map[string]any) error {
	if len(members) == 0 {
		return nil
	}
	all := map[string]any{}
	if *setting != "" {
		decoder := json.NewDecoder(strings.NewReader(*setting))
		decoder.UseNumber()
		if decoder.Decode(&all) != nil || all == nil {
			all = map[string]any{}
		}
	}
	for name, value := range members {
		all[name] = value
	}
	text, err := json.Marshal(all)
	if err != nil || len(text) > maxSetting {
		return no("the setting is larger than %d bytes", maxSetting)
	}
	*setting = string(text)
	return nil
}

// settingMembers are what PUT /api/user/setting may set.
var settingMembers = []string{
	"notify_type", "quota_warning_threshold", "webhook_url", "webhook_secret", "notification_email", "bark_url", "gotify_url", "gotify_token",
	"gotify_priority", "accept_unset_model_ratio_model", "record_ip_log", "upstream_model_update_notify_enabled", "language",
}

// updateSetting answers PUT /api/user/setting.
func updateSetting(x *call) error {
	var in map[string]any
	if err := x.read(&in); err != nil {
		return err
	}
	members := map[string]any{}
	for _, name := range settingMembers {
		if v, ok := in[name]; ok {
			members[name] = v
		}
	}
	_, _, err := x.console.cfg.Store.EditUser(x.ctx(), x.me.ID, func(e *sqlstore.UserEdit) error { return mergeSetting(&e.Setting, members) })
	if err != nil {
		return err
	}
	x.effective()
	return x.data(nil)
}

// newAccessToken answers GET /api/user/token: it makes the management access token anew.
func newAccessToken(x *call) error {
	raw := make([]byte, 24) // 32 characters, as wide as the column
	if _, err := rand.Read(raw); err != nil {
		return err
	}
	token := base64.RawURLEncoding.EncodeToString(raw)
	_, _, err := x.console.cfg.Store.EditUser(x.ctx(), x.me.ID, func(e *sqlstore.UserEdit) error { e.AccessToken = token; return nil })
	if err != nil {
		return err
	}
	x.effective()
	return x.data(token)
}

// invitation answers GET /api/user/aff. A user who has no code yet, as New API's first one, gets one.
func invitation(x *call) error {
	if x.me.AffCode != "" {
		return x.data(x.me.AffCode)
	}
	code, err := x.console.cfg.Store.GiveAffCode(x.ctx(), x.me.ID)
	if err != nil {
		return err
	}
	x.effective()
	return x.data(code)
}

// transferReward answers POST /api/user/aff_transfer.
func transferReward(x *call) error {
	var in struct{ Quota int64 }
	if err := x.read(&in); err != nil {
		return err
	}
	if least := x.console.optionQuota(ledger.OptionQuotaPerUnit); in.Quota < least {
		return no("the least that can be transferred is %d units", least)
	}
	key, err := x.console.cfg.Store.TransferReward(x.ctx(), x.me.ID, in.Quota)
	if errors.Is(err, sqlstore.ErrTooLittle) {
		return no("your invitations earned less than that")
	}
	if err != nil {
		return err
	}
	x.effective(key)
	return x.done()
}

// sessions answers GET /api/user/sessions.
func sessions(x *call) error {
	list, err := x.console.cfg.Store.Sessions(x.ctx(), x.me.ID)
	if err != nil {
		return err
	}
	views := make([]sessionView, len(list))
	for i, s := range list {
		views[i] = viewSession(s, x.me.keep())
	}
	return x.data(views)
}

// endSession answers DELETE /api/user/sessions/:sid.
func endSession(x *call) error {
	id, err := ledger.ParseID(x.Param("sid"))
	if err != nil {
		return wrong("sid must be the id of a session")
	}
	session, _, err := x.console.cfg.Store.Session(x.ctx(), id)
	if err == nil && session.User != x.me.ID {
		err = errMissing
	}
	if err == nil {
		err = x.console.cfg.Store.EndSession(x.ctx(), id)
	}
	if err != nil {
		return err
	}
	return x.done()
}
