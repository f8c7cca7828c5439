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
	list, err := tx.channelAssignments(ctx, &c)
	if err != nil {
		return 0, err
	}
	id, err = tx.insert(ctx, "channels", append(list, assignment{"created_time", tx.s.now().Unix()}, assignment{"used_quota", 0}))
	if err != nil {
		return 0, err
	}
	c.ID = id
	if err := tx.writeAbilities(ctx, &c); err != nil {
		return 0, err
	}
	tx.Changed(ChangeChannel, id)
	return id, tx.audit(ctx, fmt.Sprintf("created channel %s (ID: %d)", c.Name, id))
}

// channelAssignments are the columns of a channel but for those that never change by hand.
func (tx *Tx) channelAssignments(ctx context.Context, c *ChannelRow) ([]assignment, error) {
	key, err := tx.keepChannel(ctx, c.Key)
	if err != nil {
		return nil, err
	}
	return []assignment{
		{"type", c.Type},
		{"key", key},
		{"open_ai_organization", nullable(c.Organization)},
		{"test_model", nullable(c.TestModel)},
		{"status", c.Status},
		{"name", c.Name},
		{"weight", max(0, c.Weight)},
		{"test_time", c.TestTime},
		{"response_time", c.ResponseTime},
		{"base_url", c.BaseURL},
		{"other", c.Other},
		{"balance", c.Balance},
		{"balance_updated_time", c.BalanceUpdated},
		{"models", c.Models},
		{"group", c.Group},
		{"model_mapping", nullable(c.ModelMapping)},
		{"status_code_mapping", c.StatusCodeMapping},
		{"priority", c.Priority},
		{"auto_ban", c.AutoBan},
		{"other_info", c.OtherInfo},
		{"tag", nullable(c.Tag)},
		{"setting", nullable(c.Setting)},
		{"param_override", nullable(c.ParamOverride)},
		{"header_override", nullable(c.HeaderOverride)},
		{"remark", nullable(c.Remark)},
		{"channel_info", orElse(c.ChannelInfo, plainChannelInfo)},
		{"settings", c.Settings},
	}, nil
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
			args = append(args, pair[0], pair[1], c.ID, c.Status == ChannelEnabled, c.Priority, max(0, c.Weight), nullable(c.Tag))
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
