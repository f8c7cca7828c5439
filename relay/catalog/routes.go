package catalog

import (
	"encoding/json"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"

	"ledgerline/ledger"
	"ledgerline/ledger/sqlstore"
)

// AutoGroup is the group of a token that takes the first of a list of groups that has a channel for the model.
const AutoGroup = "auto"

// MaxRetries bounds the option RetryTimes (L7): each retry is a whole upstream request that the client waits for.
const MaxRetries = 20

// Routes is one state of channels, options and prices. It is immutable.
type Routes struct {
	Book     *ledger.PriceBook
	Settings Settings
	channels map[int64]*Channel
	// tiers: group, model, channels by falling priority; channels of one priority form one tier.
	tiers  map[string]map[string][][]*Channel
	groups []string
}

// Settings are the options that bear on relaying.
type Settings struct {
	RetryTimes      int
	RetryStatus     StatusSet
	DisableEnabled  bool // AutomaticDisableChannelEnabled
	DisableStatus   StatusSet
	DisableKeywords []string // lower case
	AutoGroups      []string
	UsableGroups    map[string]string // group to label
	SelfUse         bool
	QuotaPerUnit    int64
	TokenStat       bool // DisplayTokenStatEnabled
	Options         map[string]string
}

// StatusSet is a set of HTTP statuses such as "401,500-503".
type StatusSet [][2]int

// Has reports whether the status is in the set.
func (s StatusSet) Has(status int) bool {
	return slices.ContainsFunc(s, func(r [2]int) bool { return status >= r[0] && status <= r[1] })
}

// ParseStatusSet reads a comma list of statuses and ranges. What does not parse is reported.
func ParseStatusSet(s string) (set StatusSet, bad []string) {
	for _, part := range list(s, ",") {
		low, high, isRange := strings.Cut(part, "-")
		if !isRange {
			high = low
		}
		l, err1 := strconv.Atoi(strings.TrimSpace(low))
		h, err2 := strconv.Atoi(strings.TrimSpace(high))
		if err1 != nil || err2 != nil || l < 100 || h > 599 || l > h {
			bad = append(bad, part)
			continue
		}
		set = append(set, [2]int{l, h})
	}
	return set, bad
}

// DefaultDisableKeywords are the phrases in an upstream's error that disable a channel where the operator named none, one a
// line; New API's.
const DefaultDisableKeywords = "Your credit balance is too low\nThis organization has been disabled.\nYou exceeded your current quota\n" +
	"Permission denied\nThe security token included in the request is invalid\nOperation not allowed\nYour account is not authorized"

// optionDefaults are New API's defaults of the options that the relay reads.
var optionDefaults = map[string]string{
	"RetryTimes":                     "0",
	"AutomaticDisableChannelEnabled": "false",
	"AutomaticDisableStatusCodes":    "401",
	"AutomaticRetryStatusCodes":      "100-199,300-399,401-407,409-499,500-503,505-523,525-599",
	"AutomaticDisableKeywords":       DefaultDisableKeywords,
	"AutoGroups":                     `["default"]`,
	"UserUsableGroups":               `{"default":"Default group","vip":"VIP group"}`,
	"SelfUseModeEnabled":             "false",
	"QuotaPerUnit":                   "500000",
	"DisplayTokenStatEnabled":        "true",
}

func newRoutes(channels map[int64]*Channel, options map[string]string, book *ledger.PriceBook, log *slog.Logger) *Routes {
	r := &Routes{Book: book, channels: channels, Settings: newSettings(options, log)}
	r.tiers = map[string]map[string][][]*Channel{}
	ordered := slices.Collect(maps.Values(channels))
	slices.SortFunc(ordered, func(a, b *Channel) int {
		if a.Priority != b.Priority {
			return int(max(-1, min(1, b.Priority-a.Priority)))
		}
		return int(max(-1, min(1, a.ID-b.ID)))
	})
	for _, c := range ordered {
		if c.Status != sqlstore.ChannelEnabled {
			continue
		}
		for _, group := range c.Groups {
			models := r.tiers[group]
			if models == nil {
				models = map[string][][]*Channel{}
				r.tiers[group] = models
			}
			for _, model := range c.Models {
				tiers := models[model]
				n := len(tiers)
				switch {
				case n > 0 && slices.Contains(tiers[n-1], c): // its list names the model twice
				case n > 0 && tiers[n-1][0].Priority == c.Priority:
					tiers[n-1] = append(tiers[n-1], c)
				default:
					tiers = append(tiers, []*Channel{c})
				}
				models[model] = tiers
			}
		}
	}
	r.groups = slices.Sorted(maps.Keys(r.tiers))
	return r
}

func newSettings(options map[string]string, log *slog.Logger) Settings {
	get := func(key string) string {
		if v, ok := options[key]; ok {
			return v
		}
		return optionDefaults[key]
	}
	status := func(key string) StatusSet {
		set, bad := ParseStatusSet(get(key))
		if len(bad) > 0 {
			log.Warn("an option has entries that are no HTTP statuses; they are ignored", "option", key, "entries", bad)
		}
		return set
	}
	s := Settings{
		RetryStatus: status("AutomaticRetryStatusCodes"), DisableStatus: status("AutomaticDisableStatusCodes"),
		DisableEnabled: get("AutomaticDisableChannelEnabled") == "true", SelfUse: get("SelfUseModeEnabled") == "true",
		TokenStat: get("DisplayTokenStatEnabled") == "true", Options: options,
	}
	number := func(key string, least, most int64) int64 {
		n, err := strconv.ParseInt(get(key), 10, 64)
		if err != nil || n < least || n > most {
			log.Warn("an option is out of range; its default is used", "option", key, "value", get(key))
			n, _ = strconv.ParseInt(optionDefaults[key], 10, 64)
		}
		return n
	}
	s.RetryTimes = int(number("RetryTimes", 0, MaxRetries))
	s.QuotaPerUnit = number("QuotaPerUnit", 1, 1<<40)
	for line := range strings.SplitSeq(get("AutomaticDisableKeywords"), "\n") {
		if line = strings.ToLower(strings.TrimSpace(line)); line != "" {
			s.DisableKeywords = append(s.DisableKeywords, line)
		}
	}
	for key, into := range map[string]any{"AutoGroups": &s.AutoGroups, "UserUsableGroups": &s.UsableGroups} {
		if err := json.Unmarshal([]byte(get(key)), into); err != nil {
			log.Warn("an option does not parse; its default is used", "option", key, "error", err)
			_ = json.Unmarshal([]byte(optionDefaults[key]), into)
		}
	}
	return s
}

// Channel returns a channel by id, whatever its status; nil if there is none.
func (r *Routes) Channel(id int64) *Channel { return r.channels[id] }

// Has reports whether the group has an enabled channel for the model.
func (r *Routes) Has(group, model string) bool { return len(r.tiers[group][model]) > 0 }

// Pick chooses a channel for one attempt (0 is the first): the attempt-th highest priority, the lowest at the most, and
// within it by weight at random. Channels in tried are avoided while the tier has others. nil: the group has none.
func (r *Routes) Pick(group, model string, attempt int, tried []int64) *Channel {
	tiers := r.tiers[group][model]
	if len(tiers) == 0 {
		return nil
	}
	tier := tiers[min(attempt, len(tiers)-1)]
	if len(tier) == 1 {
		return tier[0]
	}
	fresh, total := 0, int64(0)
	for _, c := range tier {
		if !slices.Contains(tried, c.ID) {
			fresh++
			total += c.Weight
		}
	}
	if fresh == 0 {
		return tier[rand.IntN(len(tier))]
	}
	// The draw counts units of weight, or channels if none has any. Nothing is allocated: a tier may have thousands.
	weighted := total > 0
	if !weighted {
		total = int64(fresh)
	}
	n := rand.Int64N(total)
	for _, c := range tier {
		if slices.Contains(tried, c.ID) {
			continue
		}
		if weighted {
			n -= c.Weight
		} else {
			n--
		}
		if n < 0 {
			return c
		}
	}
	panic("a draw below the sum of the weights found no channel")
}

// Groups returns the groups that a request of this user and token may be served from, in order. An empty result
// means that the token's group is not open to the user.
func (r *Routes) Groups(u *User, t *Token) []string {
	switch t.Group {
	case "", u.Group:
		return []string{u.Group}
	case AutoGroup:
		order := t.AutoGroups
		if len(order) == 0 {
			order = r.Settings.AutoGroups
		}
		usable := make([]string, 0, len(order))
		for _, g := range order {
			if r.usable(u, g) {
				usable = append(usable, g)
			}
		}
		return usable
	}
	if r.usable(u, t.Group) {
		return []string{t.Group}
	}
	return nil
}

func (r *Routes) usable(u *User, group string) bool {
	_, ok := r.Settings.UsableGroups[group]
	return ok || group == u.Group
}

// Models returns the models that have an enabled channel in any of the groups, sorted.
func (r *Routes) Models(groups []string) []string {
	set := map[string]bool{}
	for _, g := range groups {
		for m := range r.tiers[g] {
			set[m] = true
		}
	}
	return slices.Sorted(maps.Keys(set))
}
