package catalog

import (
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/tidwall/gjson"

	"ledgerline/ledger/sqlstore"
)

// maxMapping bounds how many steps of a model mapping are followed; longer chains are cycles (L7).
const maxMapping = 16

// Channel is one upstream account.
type Channel struct {
	ID            int64
	Type          int
	Name          string
	Status        int
	BaseURL       string // without a trailing slash; "" = the provider's own
	Organization  string
	Models        []string
	Groups        []string
	Priority      int64
	Weight        int64
	AutoBan       bool
	Tag           string
	TestModel     string
	Keys          []Key
	Polling       bool // several keys are used in turn, else at random
	mapping       map[string]string
	StatusMapping map[int]int
	Headers       map[string]string

	turn atomic.Uint64
}

// Key is one usable key of a channel and its index in the stored list.
type Key struct {
	Index int
	Value string
}

func newChannel(r *sqlstore.ChannelRow, log *slog.Logger) *Channel {
	c := &Channel{
		ID: r.ID, Type: r.Type, Name: r.Name, Status: r.Status, BaseURL: strings.TrimRight(r.BaseURL, "/"),
		Organization: r.Organization, Models: list(r.Models, ","), Groups: list(r.Group, ","),
		Priority: r.Priority, Weight: max(0, r.Weight), AutoBan: r.AutoBan, Tag: r.Tag, TestModel: r.TestModel,
	}
	if len(c.Groups) == 0 {
		c.Groups = []string{"default"}
	}
	info := gjson.Parse(r.ChannelInfo)
	c.Keys = channelKeys(r.Key, info)
	c.Polling = info.Get("multi_key_mode").Str == "polling"
	bad := func(field string) {
		log.Warn("a field of a channel is no JSON object of texts; it is ignored", "channel", r.ID, "field", field)
	}
	if err := unmarshalMap(r.ModelMapping, &c.mapping); err != nil {
		bad("model_mapping")
	}
	if err := unmarshalMap(r.HeaderOverride, &c.Headers); err != nil {
		bad("header_override")
	}
	var status map[string]any
	if err := unmarshalMap(r.StatusCodeMapping, &status); err != nil {
		bad("status_code_mapping")
	}
	c.StatusMapping = map[int]int{}
	for from, to := range status {
		f, err := strconv.Atoi(from)
		t, ok := toInt(to)
		if err == nil && ok && t >= 100 && t <= 599 {
			c.StatusMapping[f] = t
		}
	}
	return c
}

func toInt(v any) (int, bool) {
	switch v := v.(type) {
	case string:
		n, err := strconv.Atoi(v)
		return n, err == nil
	case float64:
		return int(v), v == float64(int(v))
	}
	return 0, false
}

func unmarshalMap[V any](s string, into *map[string]V) error {
	if strings.TrimSpace(s) == "" {
		return nil
	}
	return json.Unmarshal([]byte(s), into)
}

// channelKeys returns the keys that are not disabled. Several keys are kept as lines, or as a JSON array.
func channelKeys(raw string, info gjson.Result) []Key {
	if !info.Get("is_multi_key").Bool() {
		return []Key{{0, strings.TrimSpace(raw)}}
	}
	var values []string
	if trimmed := strings.TrimSpace(raw); strings.HasPrefix(trimmed, "[") && gjson.Valid(trimmed) {
		for _, v := range gjson.Parse(trimmed).Array() {
			values = append(values, v.String())
		}
	} else {
		values = list(raw, "\n")
	}
	status := info.Get("multi_key_status_list")
	var keys []Key
	for i, v := range values {
		if st := status.Get(strconv.Itoa(i)); !st.Exists() || st.Int() == sqlstore.ChannelEnabled {
			keys = append(keys, Key{i, v})
		}
	}
	return keys
}

// Key picks the key for one request: in turn or at random. ok is false if all keys are disabled.
func (c *Channel) Key() (key Key, ok bool) {
	switch n := len(c.Keys); {
	case n == 0:
		return Key{}, false
	case n == 1:
		return c.Keys[0], true
	case c.Polling:
		return c.Keys[(c.turn.Add(1)-1)%uint64(n)], true
	default:
		return c.Keys[rand.IntN(n)], true
	}
}

// Sent returns the model name to send upstream: the mapping is followed through chains. A cycle is a misconfiguration of
// the channel and returns ok false.
func (c *Channel) Sent(model string) (sent string, ok bool) {
	sent = model
	for range maxMapping {
		next, mapped := c.mapping[sent]
		if !mapped || next == "" || next == sent {
			return sent, true
		}
		sent = next
	}
	return "", false
}
