package sqlstore

import (
	"context"
	"fmt"
	"strings"
)

// plainChannelInfo is the column channel_info of a channel with one key, as New API writes it.
const plainChannelInfo = `{"is_multi_key":false,"multi_key_size":0,"multi_key_status_list":null,"multi_key_polling_index":0,"multi_key_mode":""}`

// CreateChannel inserts a channel and its abilities and returns its id. Status 0 means enabled.
func (s *Store) CreateChannel(ctx context.Context, c ChannelRow) (id int64, err error) {
	err = s.Tx(ctx, func(tx *Tx) error {
		id, err = tx.createChannel(ctx, c)
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("create channel %q: %w", c.Name, err)
	}
	return id, nil
}

// CreateChannels inserts channels, all or none, at most MaxChannelsAtOnce.
func (s *Store) CreateChannels(ctx context.Context, list []ChannelRow) error {
	if len(list) > MaxChannelsAtOnce {
		return fmt.Errorf("create channels: %d at once, at most %d", len(list), MaxChannelsAtOnce)
	}
	err := s.Tx(ctx, func(tx *Tx) error {
		for _, c := range list {
			if _, err := tx.createChannel(ctx, c); err != nil {
				return fmt.Errorf("channel %q: %w", c.Name, err)
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("create channels: %w", err)
	}
	return nil
}

func (tx *Tx) createChannel(ctx context.Context, c ChannelRow) (id int64, err error) {
	if c.Group == "" {
		c.Group = "default"
	}
	if c.Status == 0 {
		c.Status = ChannelEnabled
	}
	result, err := tx.Exec(ctx, "INSERT INTO channels (`type`, `key`, `open_ai_organization`, `test_model`, `status`, `name`, `weight`, "+
		"`created_time`, `test_time`, `response_time`, `base_url`, `other`, `balance`, `balance_updated_time`, `models`, `group`, `used_quota`, "+
		"`model_mapping`, `status_code_mapping`, `priority`, `auto_ban`, `other_info`, `tag`, `setting`, `param_override`, `header_override`, "+
		"`remark`, `channel_info`, `settings`) VALUES (?,?,?,?,?,?,?,?,0,0,?,?,0,0,?,?,0,?,?,?,?,?,?,?,?,?,?,?,?)",
		c.Type, c.Key, nullable(c.Organization), nullable(c.TestModel), c.Status, c.Name, max(0, c.Weight), tx.s.now().Unix(), c.BaseURL, c.Other,
		c.Models, c.Group, nullable(c.ModelMapping), c.StatusCodeMapping, c.Priority, c.AutoBan, c.OtherInfo, nullable(c.Tag), nullable(c.Setting),
		nullable(c.ParamOverride), nullable(c.HeaderOverride), nullable(c.Remark), orElse(c.ChannelInfo, plainChannelInfo), c.Settings)
	if err != nil {
		return 0, err
	}
	if id, err = result.LastInsertId(); err != nil {
		return 0, err
	}
	c.ID = id
	if err := tx.writeAbilities(ctx, &c); err != nil {
		return 0, err
	}
	tx.Changed(ChangeChannel, id)
	return id, tx.audit(ctx, fmt.Sprintf("created channel %s (ID: %d)", c.Name, id))
}

// abilityChunk rows make one statement, as New API writes them.
const abilityChunk = 50

// writeAbilities replaces a channel's rows of `abilities`: the product of its groups and models. We route by the channel
// itself; the rows are kept for New API and for tools that read them.
func (tx *Tx) writeAbilities(ctx context.Context, c *ChannelRow) error {
	if _, err := tx.Exec(ctx, "DELETE FROM abilities WHERE channel_id = ?", c.ID); err != nil {
		return fmt.Errorf("clear abilities: %w", err)
	}
	var args []any
	flush := func() error {
		if len(args) == 0 {
			return nil
		}
		q := new(statement).text("INSERT INTO abilities (`group`, `model`, `channel_id`, `enabled`, `priority`, `weight`, `tag`) VALUES ")
		for i := range len(args) / 7 {
			if i > 0 {
				q.text(",")
			}
			q.text("(?,?,?,?,?,?,?)")
		}
		_, err := tx.Exec(ctx, q.String(), args...)
		args = args[:0]
		return err
	}
	seen := map[[2]string]bool{}
	for group := range strings.SplitSeq(c.Group, ",") {
		for model := range strings.SplitSeq(c.Models, ",") {
			pair := [2]string{strings.TrimSpace(group), strings.TrimSpace(model)}
			if pair[0] == "" || pair[1] == "" || seen[pair] {
				continue
			}
			seen[pair] = true
			args = append(args, pair[0], pair[1], c.ID, c.Status == ChannelEnabled, c.Priority, c.Weight, nullable(c.Tag))
			if len(args) >= 7*abilityChunk {
				if err := flush(); err != nil {
					return fmt.Errorf("write abilities: %w", err)
				}
			}
		}
	}
	if err := flush(); err != nil {
		return fmt.Errorf("write abilities: %w", err)
	}
	return nil
}

func nullable(s string) any {
	if s == "" {
		return nil
	}
	return s
}

func orElse(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}
