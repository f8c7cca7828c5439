package sqlstore

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// ChannelInfo is the column channel_info: how the keys of a channel are used. Members that this build does not know stay
// as they are.
type ChannelInfo struct {
	MultiKey bool
	Size     int
	Status   map[string]int    // by index of the key, only what is not enabled
	Reason   map[string]string // why a key was disabled
	Disabled map[string]int64  // when, Unix seconds
	Polling  int               // New API's cursor
	Mode     string            // "random" or "polling"
	rest     map[string]json.RawMessage
}

// ParseChannelInfo reads the column. An empty one is that of a channel with one key.
func ParseChannelInfo(text string) (ChannelInfo, error) {
	var i ChannelInfo
	if strings.TrimSpace(text) == "" {
		return i, nil
	}
	if err := json.Unmarshal([]byte(text), &i.rest); err != nil {
		return i, fmt.Errorf("read channel_info: %w", err)
	}
	for name, into := range i.members() {
		if raw, ok := i.rest[name]; ok {
			if err := json.Unmarshal(raw, into); err != nil {
				return i, fmt.Errorf("read channel_info: %s: %w", name, err)
			}
			delete(i.rest, name)
		}
	}
	return i, nil
}

func (i *ChannelInfo) members() map[string]any {
	return map[string]any{
		"is_multi_key": &i.MultiKey, "multi_key_size": &i.Size, "multi_key_status_list": &i.Status, "multi_key_disabled_reason": &i.Reason,
		"multi_key_disabled_time": &i.Disabled, "multi_key_polling_index": &i.Polling, "multi_key_mode": &i.Mode,
	}
}

// String is the column's text.
func (i *ChannelInfo) String() string {
	out := map[string]any{}
	for name, raw := range i.rest {
		out[name] = raw
	}
	for name, member := range i.members() {
		out[name] = member
	}
	if len(i.Reason) == 0 {
		delete(out, "multi_key_disabled_reason")
	}
	if len(i.Disabled) == 0 {
		delete(out, "multi_key_disabled_time")
	}
	text, err := json.Marshal(out)
	if err != nil {
		panic("sqlstore: channel_info cannot be encoded: " + err.Error()) // strings, numbers and what was parsed before
	}
	return string(text)
}

// off reports whether a key is disabled.
func (i *ChannelInfo) off(index int) bool {
	st, ok := i.Status[strconv.Itoa(index)]
	return ok && st != ChannelEnabled
}

// disable marks a key and reports whether all are off now.
func (i *ChannelInfo) disable(index, keys int, reason string, now time.Time) (all bool) {
	if i.Status == nil {
		i.Status = map[string]int{}
	}
	if i.Reason == nil {
		i.Reason = map[string]string{}
	}
	if i.Disabled == nil {
		i.Disabled = map[string]int64{}
	}
	name := strconv.Itoa(index)
	i.Status[name], i.Reason[name], i.Disabled[name], i.Size = ChannelAutoDisabled, reason, now.Unix(), keys
	for k := range keys {
		if !i.off(k) {
			return false
		}
	}
	return true
}

// EnableKeys takes every key into use again.
func (i *ChannelInfo) EnableKeys() { i.Status, i.Reason, i.Disabled = nil, nil, nil }

// SplitKeys returns the keys of a channel with several: lines, or the elements of a JSON array.
func SplitKeys(text string) []string {
	text = strings.TrimSpace(text)
	var elements []json.RawMessage
	if strings.HasPrefix(text, "[") && json.Unmarshal([]byte(text), &elements) == nil {
		keys := make([]string, 0, len(elements))
		for _, raw := range elements {
			var key string
			if json.Unmarshal(raw, &key) != nil {
				key = string(raw) // an object: a service account
			}
			keys = append(keys, key)
		}
		return keys
	}
	var keys []string
	for line := range strings.SplitSeq(text, "\n") {
		if line = strings.TrimSpace(line); line != "" {
			keys = append(keys, line)
		}
	}
	return keys
}
