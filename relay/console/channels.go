package console

import (
	"encoding/json"
	"strconv"
	"strings"

	"ledgerline/ledger/sqlstore"
)

// channelView is a channel as administrators see it. Its key is never shown.
type channelView struct {
	ID                int64           `json:"id"`
	Type              int             `json:"type"`
	Key               string          `json:"key"`
	Organization      *string         `json:"openai_organization"`
	TestModel         *string         `json:"test_model"`
	Status            int             `json:"status"`
	Name              string          `json:"name"`
	Weight            int64           `json:"weight"`
	CreatedTime       int64           `json:"created_time"`
	TestTime          int64           `json:"test_time"`
	ResponseTime      int64           `json:"response_time"`
	BaseURL           string          `json:"base_url"`
	Other             string          `json:"other"`
	Balance           float64         `json:"balance"`
	BalanceUpdated    int64           `json:"balance_updated_time"`
	Models            string          `json:"models"`
	Group             string          `json:"group"`
	UsedQuota         int64           `json:"used_quota"`
	ModelMapping      *string         `json:"model_mapping"`
	StatusCodeMapping string          `json:"status_code_mapping"`
	Priority          int64           `json:"priority"`
	AutoBan           int             `json:"auto_ban"`
	OtherInfo         string          `json:"other_info"`
	Tag               *string         `json:"tag"`
	Setting           *string         `json:"setting"`
	ParamOverride     *string         `json:"param_override"`
	HeaderOverride    *string         `json:"header_override"`
	Remark            *string         `json:"remark"`
	Info              channelInfoView `json:"channel_info"`
	Settings          string          `json:"settings"`
}

type channelInfoView struct {
	MultiKey bool              `json:"is_multi_key"`
	Size     int               `json:"multi_key_size"`
	Status   map[string]int    `json:"multi_key_status_list"`
	Reason   map[string]string `json:"multi_key_disabled_reason,omitempty"`
	Disabled map[string]int64  `json:"multi_key_disabled_time,omitempty"`
	Polling  int               `json:"multi_key_polling_index"`
	Mode     string            `json:"multi_key_mode"`
}

// updatedChannelView is what PUT answers with: New API echoes two members of the request.
type updatedChannelView struct {
	channelView
	MultiKeyMode *string `json:"multi_key_mode"`
	KeyMode      *string `json:"key_mode"`
}

func textOrNull(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

func viewChannel(c *sqlstore.ChannelRow) channelView {
	v := channelView{
		ID: c.ID, Type: c.Type, Organization: textOrNull(c.Organization), TestModel: textOrNull(c.TestModel), Status: c.Status, Name: c.Name,
		Weight: c.Weight, CreatedTime: c.CreatedTime, TestTime: c.TestTime, ResponseTime: c.ResponseTime, BaseURL: c.BaseURL, Other: c.Other,
		Balance: c.Balance, BalanceUpdated: c.BalanceUpdated, Models: c.Models, Group: c.Group, UsedQuota: c.UsedQuota,
		ModelMapping: textOrNull(c.ModelMapping), StatusCodeMapping: c.StatusCodeMapping, Priority: c.Priority, OtherInfo: c.OtherInfo,
		Tag: textOrNull(c.Tag), Setting: textOrNull(c.Setting), ParamOverride: textOrNull(c.ParamOverride),
		HeaderOverride: textOrNull(c.HeaderOverride), Remark: textOrNull(c.Remark), Settings: c.Settings,
	}
	if c.AutoBan {
		v.AutoBan = 1
	}
	if i, err := sqlstore.ParseChannelInfo(c.ChannelInfo); err == nil { // what does not parse is shown as a channel with one key
		v.Info = channelInfoView{i.MultiKey, i.Size, i.Status, i.Reason, i.Disabled, i.Polling, i.Mode}
	}
	return v
}

func viewChannels(list []*sqlstore.ChannelRow) []channelView {
	views := make([]channelView, len(list))
	for i, c := range list {
		views[i] = viewChannel(c)
	}
	return views
}

// number reads a whole number from the query; 0 if there is none.
func (x *call) number(name string) int {
	n, err := strconv.Atoi(x.QueryParam(name))
	if err != nil {
		return 0
	}
	return n
}

func (x *call) channelFilter() sqlstore.ChannelFilter {
	f := sqlstore.ChannelFilter{
		Keyword: x.QueryParam("keyword"), Group: x.QueryParam("group"), Model: x.QueryParam("model"), Tag: x.QueryParam("tag"), Type: x.number("type"),
		ByID: x.QueryParam("id_sort") == "true", Tags: x.QueryParam("tag_mode") == "true",
	}
	if f.Group == "null" { // New API's dashboard sends the word
		f.Group = ""
	}
	switch x.QueryParam("status") {
	case "enabled", "1":
		f.Enabled = new(true)
	case "disabled", "0":
		f.Enabled = new(false)
	}
	return f
}

// typeCounts keys the counts by text, with the sum under "all" as the dashboard expects when it filters.
func typeCounts(types map[int]int) map[string]int {
	out := make(map[string]int, len(types))
	for kind, n := range types {
		out[strconv.Itoa(kind)] = n
	}
	return out
}

// listChannels answers GET /api/channel/.
func listChannels(x *call) error {
	p := x.page()
	got, err := x.console.cfg.Store.Channels(x.ctx(), x.channelFilter(), p.rows())
	if err != nil {
		return err
	}
	return x.data(map[string]any{
		"items": viewChannels(got.Items), "page": p.number, "page_size": p.size, "total": got.Total, "type_counts": typeCounts(got.Types),
	})
}

// searchChannels answers GET /api/channel/search.
func searchChannels(x *call) error {
	got, err := x.console.cfg.Store.Channels(x.ctx(), x.channelFilter(), x.page().rows())
	if err != nil {
		return err
	}
	return x.data(map[string]any{"items": viewChannels(got.Items), "total": got.Total, "type_counts": typeCounts(got.Types)})
}

// getChannel answers GET /api/channel/:id.
func getChannel(x *call) error {
	id, err := x.idParam()
	if err != nil {
		return err
	}
	c, err := x.console.cfg.Store.Channel(x.ctx(), id)
	if err != nil {
		return err
	}
	return x.data(viewChannel(c))
}

// enabledModels answers GET /api/channel/models and models_enabled: what enabled channels serve.
func enabledModels(x *call) error {
	return x.JSON(200, struct {
		Data    []string `json:"data"`
		Success bool     `json:"success"`
	}{x.console.models(), true})
}

// channelBody is a channel in a request. Members that are missing keep what they were.
type channelBody struct {
	ID                int64
	Type              *int
	Key               *string
	Organization      *string `json:"openai_organization"`
	TestModel         *string `json:"test_model"`
	Status            *int
	Name              *string
	Weight            *int64
	BaseURL           *string `json:"base_url"`
	Other             *string
	Models            *string
	Group             *string
	ModelMapping      *string `json:"model_mapping"`
	StatusCodeMapping *string `json:"status_code_mapping"`
	Priority          *int64
	AutoBan           *int `json:"auto_ban"`
	Tag               *string
	Setting           *string
	ParamOverride     *string `json:"param_override"`
	HeaderOverride    *string `json:"header_override"`
	Remark            *string
	Settings          *string
	MultiKeyMode      *string `json:"multi_key_mode"`
	KeyMode           *string `json:"key_mode"` // append or replace, of a channel with several keys
}

// apply puts the body's members into a channel, but for the key.
func (b *channelBody) apply(c *sqlstore.ChannelRow) error {
	set(&c.Type, b.Type)
	set(&c.Organization, b.Organization)
	set(&c.TestModel, b.TestModel)
	set(&c.Name, b.Name)
	set(&c.Weight, b.Weight)
	set(&c.BaseURL, b.BaseURL)
	set(&c.Other, b.Other)
	set(&c.Models, b.Models)
	set(&c.Group, b.Group)
	set(&c.ModelMapping, b.ModelMapping)
	set(&c.StatusCodeMapping, b.StatusCodeMapping)
	set(&c.Priority, b.Priority)
	set(&c.Tag, b.Tag)
	set(&c.Setting, b.Setting)
	set(&c.ParamOverride, b.ParamOverride)
	set(&c.HeaderOverride, b.HeaderOverride)
	set(&c.Remark, b.Remark)
	set(&c.Settings, b.Settings)
	if b.AutoBan != nil {
		c.AutoBan = *b.AutoBan != 0
	}
	return checkChannel(c)
}

// Bounds of a channel's texts: those of its columns.
var channelBounds = []struct {
	name  string
	most  int // characters
	value func(*sqlstore.ChannelRow) string
}{
	{"name", 191, func(c *sqlstore.ChannelRow) string { return c.Name }},
	{"base_url", 191, func(c *sqlstore.ChannelRow) string { return c.BaseURL }},
	{"group", 64, func(c *sqlstore.ChannelRow) string { return c.Group }},
	{"status_code_mapping", 1024, func(c *sqlstore.ChannelRow) string { return c.StatusCodeMapping }},
	{"tag", 191, func(c *sqlstore.ChannelRow) string { return c.Tag }},
	{"remark", 255, func(c *sqlstore.ChannelRow) string { return c.Remark }},
	{"model_mapping", 60_000, func(c *sqlstore.ChannelRow) string { return c.ModelMapping }},
	{"header_override", 60_000, func(c *sqlstore.ChannelRow) string { return c.HeaderOverride }},
	{"param_override", 60_000, func(c *sqlstore.ChannelRow) string { return c.ParamOverride }},
	{"setting", 60_000, func(c *sqlstore.ChannelRow) string { return c.Setting }},
	{"models", 1 << 20, func(c *sqlstore.ChannelRow) string { return c.Models }},
}

// maxModelName is the width of the column in `abilities`.
const maxModelName = 255

// checkChannel refuses what the relay would not understand.
func checkChannel(c *sqlstore.ChannelRow) error {
	if c.BaseURL != "" && !strings.HasPrefix(c.BaseURL, "http://") && !strings.HasPrefix(c.BaseURL, "https://") {
		return no("the base_url %q must begin with http:// or https://", c.BaseURL)
	}
	for _, b := range channelBounds {
		if n := len([]rune(b.value(c))); n > b.most {
			return no("%s has %d characters, at most %d are stored", b.name, n, b.most)
		}
	}
	for model := range strings.SplitSeq(c.Models, ",") {
		if len([]rune(model)) > maxModelName {
			return no("a model's name has at most %d characters", maxModelName)
		}
	}
	if c.Type <= 0 {
		return no("the channel needs a type")
	}
	if c.Weight < 0 {
		return no("the weight cannot be negative")
	}
	for name, text := range map[string]string{
		"model_mapping": c.ModelMapping, "status_code_mapping": c.StatusCodeMapping, "header_override": c.HeaderOverride,
		"param_override": c.ParamOverride, "setting": c.Setting, "settings": c.Settings,
	} {
		var object map[string]any
		if strings.TrimSpace(text) != "" && json.Unmarshal([]byte(text), &object) != nil {
			return no("%s is no JSON object", name)
		}
	}
	return nil
}

// createChannel answers POST /api/channel/: one channel, one for each key (batch), or one with several keys (multi_to_single).
func createChannel(x *call) error {
	var in struct {
		Mode         string
		MultiKeyMode string `json:"multi_key_mode"`
		Channel      *channelBody
	}
	if err := x.read(&in); err != nil {
		return err
	}
	if in.Channel == nil || in.Channel.Key == nil || strings.TrimSpace(*in.Channel.Key) == "" {
		return no("channel cannot be empty")
	}
	row := sqlstore.ChannelRow{AutoBan: true, Group: "default", Key: strings.TrimSpace(*in.Channel.Key)}
	if err := in.Channel.apply(&row); err != nil {
		return err
	}
	rows := []sqlstore.ChannelRow{row}
	switch in.Mode {
	case "single":
	case "batch":
		rows = rows[:0]
		for _, key := range sqlstore.SplitKeys(row.Key) {
			row.Key = key
			rows = append(rows, row)
		}
	case "multi_to_single":
		if err := severalKeys(&rows[0], in.MultiKeyMode); err != nil {
			return err
		}
	default:
		return no("the mode must be single, batch or multi_to_single")
	}
	if err := x.console.cfg.Store.CreateChannels(x.ctx(), rows); err != nil {
		return err
	}
	x.effective()
	return x.done()
}

func severalKeys(c *sqlstore.ChannelRow, mode string) error {
	if mode == "" {
		mode = "random"
	}
	if mode != "random" && mode != "polling" {
		return no("multi_key_mode must be random or polling")
	}
	info := sqlstore.ChannelInfo{MultiKey: true, Mode: mode, Size: len(sqlstore.SplitKeys(c.Key))}
	c.ChannelInfo = info.String()
	return nil
}

// updateChannel answers PUT /api/channel/.
func updateChannel(x *call) error {
	var in channelBody
	if err := x.read(&in); err != nil {
		return err
	}
	if in.ID <= 0 {
		return errID
	}
	c, err := x.console.cfg.Store.EditChannel(x.ctx(), in.ID, "updated channel", func(c *sqlstore.ChannelRow) error {
		if err := in.apply(c); err != nil {
			return err
		}
		if in.Status != nil && *in.Status != c.Status {
			if err := checkChannelStatus(*in.Status); err != nil {
				return err
			}
			c.Status = *in.Status
		}
		return in.applyKey(c)
	})
	if err != nil {
		return err
	}
	x.effective()
	return x.data(updatedChannelView{viewChannel(c), in.MultiKeyMode, in.KeyMode})
}

// applyKey changes the key, if there is a new one. New keys of a channel with several are appended, or replace all of them, which
// takes every key into use again.
func (b *channelBody) applyKey(c *sqlstore.ChannelRow) error {
	info, err := sqlstore.ParseChannelInfo(c.ChannelInfo)
	if err != nil {
		return no("the channel's channel_info does not parse: %v", err)
	}
	if b.MultiKeyMode != nil && *b.MultiKeyMode != "" && info.MultiKey {
		if *b.MultiKeyMode != "random" && *b.MultiKeyMode != "polling" {
			return no("multi_key_mode must be random or polling")
		}
		info.Mode = *b.MultiKeyMode
	}
	fresh := ""
	if b.Key != nil {
		fresh = strings.TrimSpace(*b.Key)
	}
	switch {
	case fresh == "":
	case !info.MultiKey:
		c.Key = fresh
	case b.KeyMode != nil && *b.KeyMode == "append":
		c.Key = strings.Join(append(sqlstore.SplitKeys(c.Key), sqlstore.SplitKeys(fresh)...), "\n")
	default:
		c.Key = fresh
		info.EnableKeys()
	}
	if info.MultiKey {
		info.Size = len(sqlstore.SplitKeys(c.Key))
		c.ChannelInfo = info.String()
	}
	return nil
}

func checkChannelStatus(status int) error {
	switch status {
	case sqlstore.ChannelEnabled, sqlstore.ChannelDisabled:
		return nil
	}
	return no("the status must be %d (enabled) or %d (disabled)", sqlstore.ChannelEnabled, sqlstore.ChannelDisabled)
}
