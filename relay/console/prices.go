package console

import (
	"encoding/json"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
	"ledgerline/relay/catalog"
)

// usable returns the groups that are open to users of a group, with their labels.
func (c *Console) usable(group string) map[string]string {
	open := maps.Clone(c.cfg.Catalog.Routes().Settings.UsableGroups)
	if open == nil {
		open = map[string]string{}
	}
	if _, ok := open[group]; !ok && group != "" {
		open[group] = "your group"
	}
	return open
}

// numbers reads an option that maps names to numbers, keeping them as they are written.
func (c *Console) numbers(key string) map[string]json.Number {
	table := map[string]json.Number{}
	if json.Unmarshal([]byte(c.option(key)), &table) != nil {
		return map[string]json.Number{}
	}
	return table
}

// ratios returns the ratio of each group to users of a group.
func (c *Console) ratios(group string) map[string]json.Number {
	ratios := c.numbers(ledger.OptionGroupRatio)
	special := map[string]map[string]json.Number{}
	if json.Unmarshal([]byte(c.option(ledger.OptionGroupGroupRatio)), &special) == nil {
		for name, ratio := range special[group] {
			if _, ok := ratios[name]; ok {
				ratios[name] = ratio
			}
		}
	}
	return ratios
}

// groupNames returns every group that has a ratio or is open to users.
func (c *Console) groupNames() []string {
	names := map[string]bool{}
	for name := range c.numbers(ledger.OptionGroupRatio) {
		names[name] = true
	}
	for name := range c.usable("default") {
		names[name] = true
	}
	delete(names, catalog.AutoGroup)
	return slices.Sorted(maps.Keys(names))
}

// models returns what enabled channels serve in any group.
func (c *Console) models() []string {
	return emptyNotNull(c.cfg.Catalog.Routes().Models(c.groupNames()))
}

func emptyNotNull[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// listGroups answers GET /api/group/.
func listGroups(x *call) error {
	return x.data(slices.Sorted(maps.Keys(x.console.numbers(ledger.OptionGroupRatio))))
}

type groupView struct {
	Label string `json:"desc"`
	Ratio any    `json:"ratio"` // a number; a text for auto
}

// userGroups answers GET /api/user/self/groups, and GET /api/user/groups to anybody.
func userGroups(x *call) error {
	group := ""
	if x.me != nil {
		group = x.me.Group
	}
	ratios := x.console.ratios(group)
	views := map[string]groupView{}
	for name, label := range x.console.usable(group) {
		ratio, ok := ratios[name]
		switch {
		case name == catalog.AutoGroup:
			views[name] = groupView{label, "auto"}
		case ok:
			views[name] = groupView{label, ratio}
		case name == group:
			views[name] = groupView{label, json.Number("1")}
		}
	}
	return x.data(views)
}

// userModels answers GET /api/user/models: what the caller's groups serve.
func userModels(x *call) error {
	groups := slices.Collect(maps.Keys(x.console.usable(x.me.Group)))
	if only := x.QueryParam("group"); only != "" && only != catalog.AutoGroup {
		if !slices.Contains(groups, only) {
			return no("the group %q is not open to you", only)
		}
		groups = []string{only}
	}
	return x.data(emptyNotNull(x.console.cfg.Catalog.Routes().Models(groups)))
}

type modelObject struct {
	ID      string `json:"id"`
	Object  string `json:"object"`
	Created int64  `json:"created"`
	Owner   string `json:"owned_by"`
}

// knownModels answers GET /api/channel/models: every model that has a price, for the form of a channel.
func knownModels(x *call) error {
	const created = 1626777600 // what New API says of every model
	list := []modelObject{}
	for _, name := range x.console.cfg.Catalog.Routes().Book.Models() {
		list = append(list, modelObject{name, "model", created, "custom"})
	}
	return x.JSON(http.StatusOK, struct {
		Data    []modelObject `json:"data"`
		Success bool          `json:"success"`
	}{list, true})
}

// priceView is a model's price for the eye. Numbers are as they stand in the options.
type priceView struct {
	Model       string      `json:"model_name"`
	Type        int         `json:"quota_type"` // 0 by tokens, 1 by call
	Ratio       json.Number `json:"model_ratio"`
	Price       json.Number `json:"model_price"`
	Owner       string      `json:"owner_by"`
	Completion  json.Number `json:"completion_ratio"`
	Cache       json.Number `json:"cache_ratio,omitempty"`
	CreateCache json.Number `json:"create_cache_ratio,omitempty"`
	Mode        string      `json:"billing_mode,omitempty"`
	Expression  string      `json:"billing_expr,omitempty"`
	Groups      []string    `json:"enable_groups"`
	Endpoints   []string    `json:"supported_endpoint_types"`
}

// priceList is the last price list and what it was made from.
type priceList struct {
	mu     sync.Mutex
	routes *catalog.Routes
	views  []priceView
}

// list returns the prices of all models that enabled channels serve. It is made anew when channels or options change.
func (l *priceList) list(c *Console) []priceView {
	l.mu.Lock()
	defer l.mu.Unlock()
	routes := c.cfg.Catalog.Routes()
	if l.routes == routes {
		return l.views
	}
	cache, write := c.numbers(ledger.OptionCacheRatio), c.numbers(ledger.OptionCreateCacheRatio)
	expressions := map[string]string{}
	_ = json.Unmarshal([]byte(c.option(ledger.OptionBillingExpr)), &expressions) // shown only; the price book has checked it
	groups := c.groupNames()
	l.routes, l.views = routes, []priceView{}
	for _, model := range routes.Models(groups) {
		quote, err := routes.Book.Quote(model, "", "")
		if err != nil {
			continue // no price: it cannot be used either
		}
		r := quote.Rating()
		v := priceView{
			Model: model, Ratio: orZero(r.ModelRatio), Price: orZero(r.ModelPrice), Completion: orZero(r.CompletionRatio),
			Cache: cache[model], CreateCache: write[model], Groups: []string{}, Endpoints: []string{"openai"},
		}
		switch quote.Mode() {
		case ledger.ModePrice:
			v.Type = 1
		case ledger.ModeExpr:
			v.Mode, v.Expression = "tiered_expr", expressions[model]
		}
		for _, g := range groups {
			if routes.Has(g, model) {
				v.Groups = append(v.Groups, g)
			}
		}
		l.views = append(l.views, v)
	}
	return l.views
}

func orZero(text string) json.Number {
	if text == "" {
		return "0"
	}
	return json.Number(text)
}

// pricing answers GET /api/pricing: to a user what its groups may use, to anybody else what is open to all.
func pricing(x *call) error {
	c := x.console
	group := ""
	if x.identify(sqlstore.RoleGuest) == nil {
		group = x.me.Group
	}
	open := c.usable(group)
	models := []priceView{}
	for _, v := range c.prices.list(c) {
		if slices.ContainsFunc(v.Groups, func(g string) bool { _, ok := open[g]; return ok }) {
			models = append(models, v)
		}
	}
	ratios := c.ratios(group)
	maps.DeleteFunc(ratios, func(g string, _ json.Number) bool { _, ok := open[g]; return !ok })
	routes := c.cfg.Catalog.Routes()
	return x.JSON(http.StatusOK, map[string]any{
		"success": true, "data": models, "vendors": []any{}, "group_ratio": ratios, "usable_group": open,
		"supported_endpoint": map[string]any{"openai": map[string]string{"path": "/v1/chat/completions", "method": http.MethodPost}},
		"auto_groups":        emptyNotNull(routes.Settings.AutoGroups), "pricing_version": routes.Book.Version(),
	})
}

// ratioConfig answers GET /api/ratio_config: the price tables, if the operator shows them.
func ratioConfig(x *call) error {
	c := x.console
	if !c.optionOn("ExposeRatioEnabled") {
		return &refusal{status: http.StatusForbidden, message: "the price tables are not shown"}
	}
	data := map[string]any{}
	for name, key := range map[string]string{
		"model_ratio": ledger.OptionModelRatio, "completion_ratio": ledger.OptionCompletionRatio, "cache_ratio": ledger.OptionCacheRatio,
		"create_cache_ratio": ledger.OptionCreateCacheRatio, "model_price": ledger.OptionModelPrice,
	} {
		data[name] = c.numbers(key)
	}
	for name, key := range map[string]string{"billing_mode": ledger.OptionBillingMode, "billing_expr": ledger.OptionBillingExpr} {
		texts := map[string]string{}
		_ = json.Unmarshal([]byte(c.option(key)), &texts) // the price book has checked it
		data[strings.TrimSpace(name)] = texts
	}
	return x.data(data)
}
