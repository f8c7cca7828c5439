package sqlstore

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
)

// EditChannel locks a channel, lets fn change it, and stores the change with its abilities. fn may refuse with an error, which is returned,
// and may be called again after a deadlock. It may change everything but ID, CreatedTime and UsedQuota. note, if it is not empty, goes to
// the audit trail. It returns the channel as stored. ErrNotFound.
func (s *Store) EditChannel(ctx context.Context, id int64, note string, fn func(*ChannelRow) error) (row *ChannelRow, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		if row, err = tx.lockChannel(ctx, id); err != nil {
			return err
		}
		if err := fn(row); err != nil {
			return err
		}
		if err := tx.storeChannel(ctx, row); err != nil {
			return err
		}
		if note == "" {
			return nil
		}
		return tx.audit(ctx, fmt.Sprintf("%s %s (ID: %d)", note, row.Name, id))
	})
	if err != nil {
		return nil, fmt.Errorf("change channel %d: %w", id, err)
	}
	return row, nil
}

func (tx *Tx) lockChannel(ctx context.Context, id int64) (*ChannelRow, error) {
	return pick(ctx, tx, channelRows, " WHERE id = ?"+tx.ForUpdate(), id)
}

func (tx *Tx) storeChannel(ctx context.Context, c *ChannelRow) error {
	list, err := tx.channelAssignments(ctx, c)
	if err != nil {
		return err
	}
	if err := tx.update(ctx, "channels", c.ID, list); err != nil {
		return err
	}
	if err := tx.writeAbilities(ctx, c); err != nil {
		return err
	}
	tx.Changed(ChangeChannel, c.ID)
	return nil
}

// SetChannelStatus enables or disables channels and returns how many changed. Enabling also takes every key of a channel with
// several into use again.
func (s *Store) SetChannelStatus(ctx context.Context, ids []int64, status int) (n int, err error) {
	if len(ids) > MaxChannelsAtOnce {
		return 0, fmt.Errorf("set the status of channels: %d at once, at most %d", len(ids), MaxChannelsAtOnce)
	}
	err = s.Tx(ctx, func(tx *Tx) error {
		n = 0
		for _, id := range sorted(ids) {
			c, err := tx.lockChannel(ctx, id)
			if err != nil {
				return err
			}
			if c.Status == status {
				continue
			}
			c.Status = status
			if status == ChannelEnabled {
				if info, err := ParseChannelInfo(c.ChannelInfo); err == nil && len(info.Status) > 0 {
					info.EnableKeys()
					c.ChannelInfo = info.String()
				}
			}
			if err := tx.storeChannel(ctx, c); err != nil {
				return err
			}
			n++
		}
		return tx.audit(ctx, fmt.Sprintf("set the status of channels %v to %d", ids, status))
	})
	if err != nil {
		return 0, fmt.Errorf("set the status of channels: %w", err)
	}
	return n, nil
}

// MaxChannelsAtOnce bounds the channels of one transaction (L7).
const MaxChannelsAtOnce = 1000

// DisableChannel is the automatic disabling after an upstream's failure: the channel gets status 3 and the reason. Of a channel
// with several keys only the key of that index goes, and the channel when it was the last one. A channel that is not enabled, or a key that is
// off already, stays as it is, so that the first reason is kept. ErrNotFound.
func (s *Store) DisableChannel(ctx context.Context, id int64, keyIndex int, reason string) error {
	err := s.Tx(ctx, func(tx *Tx) error {
		c, err := tx.lockChannel(ctx, id)
		if err != nil || c.Status != ChannelEnabled {
			return err
		}
		info, err := ParseChannelInfo(c.ChannelInfo)
		if err != nil {
			return err
		}
		if info.MultiKey {
			keys := len(SplitKeys(c.Key))
			if keyIndex < 0 || keyIndex >= keys {
				return fmt.Errorf("it has %d keys, none of index %d", keys, keyIndex)
			}
			if info.off(keyIndex) {
				return nil
			}
			all := info.disable(keyIndex, keys, cut(reason, maxNote), s.now())
			c.ChannelInfo = info.String()
			if !all {
				return tx.storeChannel(ctx, c)
			}
			reason = "all keys are disabled, the last one: " + reason
		}
		c.Status = ChannelAutoDisabled
		if c.OtherInfo, err = withReason(c.OtherInfo, cut(reason, maxNote), s.now().Unix()); err != nil {
			return err
		}
		return tx.storeChannel(ctx, c)
	})
	if err != nil {
		return fmt.Errorf("disable channel %d: %w", id, err)
	}
	return nil
}

// withReason puts why and when the status changed into the column other_info. What is no JSON object there is replaced.
func withReason(text, reason string, at int64) (string, error) {
	info := map[string]any{}
	if err := json.Unmarshal([]byte(text), &info); err != nil || info == nil {
		info = map[string]any{}
	}
	info["status_reason"], info["status_time"] = reason, at
	out, err := json.Marshal(info)
	if err != nil {
		return "", fmt.Errorf("write other_info: %w", err)
	}
	return string(out), nil
}

// DeleteChannels removes channels with their abilities and returns how many were there. Their accounts stay: what they charged
// is history.
func (s *Store) DeleteChannels(ctx context.Context, ids ...int64) (n int, err error) {
	if len(ids) > MaxChannelsAtOnce {
		return 0, fmt.Errorf("delete channels: %d at once, at most %d", len(ids), MaxChannelsAtOnce)
	}
	err = s.Tx(ctx, func(tx *Tx) error {
		n = 0
		var names []string
		for _, id := range sorted(ids) {
			c, err := tx.lockChannel(ctx, id)
			if isMissing(err) {
				continue
			}
			if err != nil {
				return err
			}
			for _, q := range []string{"DELETE FROM abilities WHERE channel_id = ?", "DELETE FROM channels WHERE id = ?"} {
				if _, err := tx.Exec(ctx, q, id); err != nil {
					return err
				}
			}
			tx.Changed(ChangeChannel, id)
			names = append(names, fmt.Sprintf("%s (ID: %d)", c.Name, id))
			n++
		}
		if n == 0 {
			return nil
		}
		return tx.audit(ctx, "deleted channel "+strings.Join(names, ", "))
	})
	if err != nil {
		return 0, fmt.Errorf("delete channels: %w", err)
	}
	return n, nil
}

// TestedChannel notes when a channel was tested and how long its answer took. Nodes need not know.
func (s *Store) TestedChannel(ctx context.Context, id, millis int64) error {
	err := s.Tx(ctx, func(tx *Tx) error {
		_, err := tx.Exec(ctx, "UPDATE channels SET test_time = ?, response_time = ? WHERE id = ?", s.now().Unix(), millis, id)
		return err
	})
	if err != nil {
		return fmt.Errorf("note the test of channel %d: %w", id, err)
	}
	return nil
}

// FixAbilities writes the abilities of every channel again and returns how many channels there are.
func (s *Store) FixAbilities(ctx context.Context) (n int, err error) {
	ids, err := s.readIDs(ctx, "SELECT id FROM channels ORDER BY id")
	if err == nil {
		err = s.Tx(ctx, func(tx *Tx) error {
			_, err := tx.Exec(ctx, "DELETE FROM abilities WHERE channel_id NOT IN (SELECT id FROM channels)")
			return err
		})
	}
	for _, id := range ids {
		if err != nil {
			break
		}
		err = s.Tx(ctx, func(tx *Tx) error {
			c, err := tx.lockChannel(ctx, id)
			if isMissing(err) {
				return nil
			}
			if err != nil {
				return err
			}
			return tx.writeAbilities(ctx, c)
		})
		n++
	}
	if err != nil {
		return n, fmt.Errorf("write abilities again: %w", err)
	}
	return n, nil
}
