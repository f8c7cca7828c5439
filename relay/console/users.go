package console

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"ledgerline/ledger/sqlstore"
)

// userView is a user as administrators see it. Password and verification code are always empty: New API's form has them.
type userView struct {
	ID               int64      `json:"id"`
	Username         string     `json:"username"`
	Password         string     `json:"password"`
	OriginalPassword string     `json:"original_password"`
	DisplayName      string     `json:"display_name"`
	Role             int        `json:"role"`
	Status           int        `json:"status"`
	Email            string     `json:"email"`
	GitHubID         string     `json:"github_id"`
	DiscordID        string     `json:"discord_id"`
	OIDCID           string     `json:"oidc_id"`
	WeChatID         string     `json:"wechat_id"`
	TelegramID       string     `json:"telegram_id"`
	VerificationCode string     `json:"verification_code"`
	Quota            int64      `json:"quota"`
	UsedQuota        int64      `json:"used_quota"`
	RequestCount     int64      `json:"request_count"`
	Group            string     `json:"group"`
	AffCode          string     `json:"aff_code"`
	AffCount         int64      `json:"aff_count"`
	AffQuota         int64      `json:"aff_quota"`
	AffHistory       int64      `json:"aff_history_quota"`
	InviterID        int64      `json:"inviter_id"`
	DeletedAt        *time.Time `json:"DeletedAt"`
	LinuxDOID        string     `json:"linux_do_id"`
	Setting          string     `json:"setting"`
	Stripe           string     `json:"stripe_customer"`
	Remark           string     `json:"remark,omitempty"`
	CreatedAt        int64      `json:"created_at"`
	LastLoginAt      int64      `json:"last_login_at"`

	Permissions *adminPermissions `json:"admin_permissions,omitempty"`
}

func viewUser(u *sqlstore.UserView) userView {
	return userView{
		ID: u.ID, Username: u.Username, DisplayName: u.DisplayName, Role: u.Role, Status: u.Status, Email: u.Email, GitHubID: u.GitHubID,
		DiscordID: u.DiscordID, OIDCID: u.OIDCID, WeChatID: u.WeChatID, TelegramID: u.TelegramID, Quota: u.Quota, UsedQuota: u.UsedQuota,
		RequestCount: u.RequestCount, Group: u.Group, AffCode: u.AffCode, AffCount: u.AffCount, AffQuota: u.AffQuota, AffHistory: u.AffHistory,
		InviterID: u.InviterID, DeletedAt: timeOrNull(u.DeletedAt), LinuxDOID: u.LinuxDOID, Setting: u.Setting, Stripe: u.Stripe, Remark: u.Remark,
		CreatedAt: u.CreatedAt, LastLoginAt: u.LastLoginAt,
	}
}

func timeOrNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

// listUsers answers GET /api/user/ and /api/user/search.
func listUsers(x *call) error {
	p := x.page()
	f := sqlstore.UserFilter{Keyword: x.QueryParam("keyword"), Group: x.QueryParam("group"), Role: x.number("role"), Status: x.number("status")}
	list, total, err := x.console.cfg.Store.Users(x.ctx(), f, p.rows())
	if err != nil {
		return err
	}
	views := make([]userView, len(list))
	for i, u := range list {
		views[i] = viewUser(u)
	}
	return x.list(p, total, views)
}

// getUser answers GET /api/user/:id.
func getUser(x *call) error {
	id, err := x.idParam()
	if err != nil {
		return err
	}
	u, err := x.console.cfg.Store.UserView(x.ctx(), id)
	if err != nil {
		return err
	}
	if id != x.me.ID && !x.me.mayManage(u.Role) {
		return no("you may not look at users of your own level or above")
	}
	view := viewUser(u)
	allowed := channelsOf(u.Role)
	view.Permissions = &allowed
	return x.data(view)
}

// createUser answers POST /api/user/.
func createUser(x *call) error {
	var in struct {
		Username    string
		Password    string
		DisplayName string `json:"display_name"`
		Role        int
		Group       string
		Remark      string
	}
	if err := x.read(&in); err != nil {
		return err
	}
	if in.Role == 0 {
		in.Role = sqlstore.RoleUser
	}
	if in.Role >= x.me.Role {
		return no("Cannot create users with permission level equal to or higher than yourself")
	}
	if err := checkRole(in.Role); err != nil {
		return err
	}
	u, err := x.newUser(in.Username, in.Password, in.DisplayName)
	if err != nil {
		return err
	}
	if err := checkGroupName(in.Group); err != nil {
		return err
	}
	u.Role, u.Group, u.Remark, u.Note = in.Role, in.Group, in.Remark, "new user registration bonus"
	return x.create(u)
}

func checkRole(role int) error {
	switch role {
	case sqlstore.RoleUser, sqlstore.RoleAdmin, sqlstore.RoleRoot:
		return nil
	}
	return no("there is no role %d", role)
}

func checkGroupName(name string) error {
	if len(name) > 64 || strings.ContainsAny(name, ",\n") {
		return no("a group's name has at most 64 characters and no comma")
	}
	return nil
}

// updateUser answers PUT /api/user/: the members that are there. Quota is not among them: it is changed by /manage only,
// because a form that was open for a while would put back what was spent meanwhile.
func updateUser(x *call) error {
	var in struct {
		ID          int64
		Username    string
		Password    string
		DisplayName string `json:"display_name"`
		Group       string
		Remark      *string
		Email       *string
		Role        *int
	}
	if err := x.read(&in); err != nil {
		return err
	}
	if in.ID <= 0 {
		return errID
	}
	hash := ""
	if in.Password != "" {
		if err := checkPassword(in.Password); err != nil {
			return err
		}
		var err error
		if hash, err = x.console.hash(x, in.Password); err != nil {
			return err
		}
	}
	if err := checkGroupName(in.Group); err != nil {
		return err
	}
	_, _, err := x.console.cfg.Store.EditUser(x.ctx(), in.ID, func(e *sqlstore.UserEdit) error {
		if err := x.mayChange(e); err != nil {
			return err
		}
		if in.Role != nil && *in.Role != e.Role && *in.Role != 0 {
			if err := x.changeRole(e, *in.Role); err != nil {
				return err
			}
		}
		if in.Username != "" {
			e.Username = strings.TrimSpace(in.Username)
		}
		if in.DisplayName != "" {
			e.DisplayName = strings.TrimSpace(in.DisplayName)
		}
		if in.Group != "" {
			e.Group = in.Group
		}
		if in.Remark != nil {
			e.Remark = *in.Remark
		}
		if in.Email != nil {
			e.Email = strings.TrimSpace(*in.Email)
		}
		if hash != "" {
			e.Password, e.Revoke = hash, true
			if e.ID == x.me.ID {
				e.Keep = x.me.keep()
			}
		}
		e.Note = fmt.Sprintf("updated user %s (ID: %d)", e.Username, e.ID)
		return checkUserTexts(e)
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

func checkUserTexts(e *sqlstore.UserEdit) error {
	if err := checkName("user name", e.Username); err != nil {
		return err
	}
	if len([]rune(e.Remark)) > 255 || len([]rune(e.Email)) > 100 {
		return no("the remark has at most 255 characters, the e-mail address 100")
	}
	return checkName("display name", e.DisplayName)
}

// mayChange refuses changes of users of the caller's own level and above, but for root and for oneself.
func (x *call) mayChange(e *sqlstore.UserEdit) error {
	if e.ID == x.me.ID || x.me.mayManage(e.Role) {
		return nil
	}
	return no("you may not change users of your own level or above")
}

// changeRole promotes or demotes a user. Only root makes administrators; nobody makes a second root or unmakes the first.
func (x *call) changeRole(e *sqlstore.UserEdit, role int) error {
	switch {
	case e.Role >= sqlstore.RoleRoot || role >= sqlstore.RoleRoot:
		return no("the role of the super administrator is neither given nor taken")
	case !x.me.root():
		return no("only the super administrator changes roles")
	case role != sqlstore.RoleUser && role != sqlstore.RoleAdmin:
		return no("there is no role %d", role)
	case role == e.Role:
		return no("the user has that role already")
	}
	e.Role, e.Revoke = role, true
	return nil
}

// manageBody is what POST /api/user/manage takes.
type manageBody struct {
	ID     int64
	Action string
	Mode   string
	Value  json.Number
}

// manageUser answers POST /api/user/manage.
func manageUser(x *call) error {
	var in manageBody
	if err := x.read(&in); err != nil {
		return err
	}
	if in.ID <= 0 {
		return errID
	}
	if in.Action == "add_quota" {
		return x.addQuota(in)
	}
	user, _, err := x.console.cfg.Store.EditUser(x.ctx(), in.ID, func(e *sqlstore.UserEdit) error {
		if !x.me.mayManage(e.Role) {
			return no("you may not manage users of your own level or above")
		}
		e.Note = fmt.Sprintf("%s user %s (ID: %d)", in.Action, e.Username, e.ID)
		return x.manage(e, in.Action)
	})
	if err != nil {
		return err
	}
	x.effective()
	if in.Action == "delete" {
		return x.done()
	}
	return x.data(userView{Role: user.Role, Status: user.Status}) // as New API answers
}

func (x *call) manage(e *sqlstore.UserEdit, action string) error {
	root := e.Role >= sqlstore.RoleRoot
	switch action {
	case "enable":
		e.Status = sqlstore.UserEnabled
	case "disable":
		if root {
			return no("the super administrator cannot be disabled")
		}
		e.Status, e.Revoke = sqlstore.UserDisabled, true
	case "delete":
		if root {
			return no("the super administrator cannot be deleted")
		}
		e.Delete = true
	case "promote":
		return x.changeRole(e, sqlstore.RoleAdmin)
	case "demote":
		return x.changeRole(e, sqlstore.RoleUser)
	default:
		return wrong("action must be enable, disable, delete, promote, demote or add_quota")
	}
	return nil
}

// addQuota raises, lowers or sets what a user has left. Setting counts what is on its way: two administrators who set 100 at the
// same time leave 100. Requests that are still running charge afterwards.
func (x *call) addQuota(in manageBody) error {
	value, err := in.Value.Int64()
	if err != nil && in.Value != "" {
		return no("the value must be a whole number of quota units")
	}
	if value > sqlstore.MaxGrant || value < -sqlstore.MaxGrant {
		return no("a change of quota is at most %d units", int64(sqlstore.MaxGrant))
	}
	switch {
	case in.Mode == "override":
	case in.Mode != "add" && in.Mode != "subtract" && in.Mode != "":
		return wrong("mode must be add, subtract or override")
	case value == 0:
		return no("Quota change amount cannot be zero")
	case value < 0:
		return no("the amount must be above zero; use mode add or subtract")
	}
	_, key, err := x.console.cfg.Store.EditUser(x.ctx(), in.ID, func(e *sqlstore.UserEdit) error {
		if !x.me.mayManage(e.Role) {
			return no("you may not manage users of your own level or above")
		}
		switch in.Mode {
		case "override":
			e.Grant = value - e.Quota
			e.Note = fmt.Sprintf("set the quota of %s (ID: %d) to %d, from %d", e.Username, e.ID, value, e.Quota)
		case "subtract":
			e.Grant, e.Note = -value, fmt.Sprintf("subtracted %d from the quota of %s (ID: %d)", value, e.Username, e.ID)
		default:
			e.Grant, e.Note = value, fmt.Sprintf("added %d to the quota of %s (ID: %d)", value, e.Username, e.ID)
		}
		return nil
	})
	if err != nil {
		return err
	}
	x.effective(key)
	return x.done()
}

// deleteUser answers DELETE /api/user/:id. The user keeps its row and its history, as after action delete.
func deleteUser(x *call) error {
	id, err := x.idParam()
	if err != nil {
		return err
	}
	_, _, err = x.console.cfg.Store.EditUser(x.ctx(), id, func(e *sqlstore.UserEdit) error {
		if !x.me.mayManage(e.Role) {
			return no("you may not delete users of your own level or above")
		}
		e.Note = fmt.Sprintf("deleted user %s (ID: %d)", e.Username, e.ID)
		return x.manage(e, "delete")
	})
	if err != nil {
		return err
	}
	x.effective()
	return x.done()
}

// deleteSelf answers DELETE /api/user/self.
func deleteSelf(x *call) error {
	_, _, err := x.console.cfg.Store.EditUser(x.ctx(), x.me.ID, func(e *sqlstore.UserEdit) error {
		e.Note = fmt.Sprintf("deleted their own account %s (ID: %d)", e.Username, e.ID)
		return x.manage(e, "delete")
	})
	if err != nil {
		return err
	}
	x.clearCookies()
	x.effective()
	return x.done()
}
