package sqlstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

func isMissing(err error) bool { return errors.Is(err, ErrNotFound) }

func sorted(ids []int64) []int64 { return slices.Compact(slices.Sorted(slices.Values(ids))) }

// ChannelFilter selects channels. Zero fields select all.
type ChannelFilter struct {
	Keyword string // an id, a whole key, or a part of name or base URL
	Group   string
	Model   string // a part of the list of models
	Type    int
	Tag     string
	Enabled *bool
	ByID    bool // newest first, else by priority
	Tags    bool // page over tags: Total counts tags, and the items are all channels of the page's tags
}

// Channels is a page of channels.
type Channels struct {
	Items []*ChannelRow
	Total int
	Types map[int]int // channels by type, of all that match but for Type
}

// Channels lists channels.
func (s *Store) Channels(ctx context.Context, f ChannelFilter, page Page) (out Channels, err error) {
	err = s.View(ctx, func(tx *Tx) error {
		out = Channels{Types: map[int]int{}}
		all := f.where(false)
		q := "SELECT COALESCE(`type`, 0), COUNT(*) FROM channels" + all.String() + " GROUP BY `type`"
		err := tx.each(ctx, q, all.args, func(scan func(...any) error) error {
			var kind, n int
			err := scan(&kind, &n)
			out.Types[kind] = n
			return err
		})
		if err != nil {
			return err
		}
		if f.Tags {
			return tx.channelsByTag(ctx, &f, page, &out)
		}
		out.Items, out.Total, err = listed(ctx, tx, query[ChannelRow]{channelRows, f.where(true), f.order(), page})
		return err
	})
	if err != nil {
		return Channels{}, fmt.Errorf("list channels: %w", err)
	}
	return out, nil
}

func (tx *Tx) channelsByTag(ctx context.Context, f *ChannelFilter, page Page, out *Channels) error {
	w := f.where(true)
	w.add("`tag` IS NOT NULL AND `tag` <> ''")
	if err := tx.QueryRow(ctx, "SELECT COUNT(DISTINCT `tag`) FROM channels"+w.String(), w.args, &out.Total); err != nil {
		return err
	}
	limit, args := page.clause()
	var tags []any
	err := tx.each(ctx, "SELECT DISTINCT `tag` FROM channels"+w.String()+" ORDER BY `tag`"+limit, append(slices.Clone(w.args), args...), func(scan func(...any) error) error {
		var tag string
		err := scan(&tag)
		tags = append(tags, tag)
		return err
	})
	if err != nil || len(tags) == 0 {
		out.Items = []*ChannelRow{}
		return err
	}
	w.add("`tag` IN ("+marks(len(tags))+")", tags...)
	out.Items, err = rowsOf(ctx, tx, channelRows, w.String()+" ORDER BY `tag`, "+f.order()+" LIMIT "+strconv.Itoa(MaxChannelsAtOnce), w.args...)
	return err
}

func (f *ChannelFilter) order() string {
	if f.ByID {
		return "`id` DESC"
	}
	return "`priority` DESC, `id`"
}

func (f *ChannelFilter) where(withType bool) *conditions {
	w := &conditions{}
	if f.Keyword != "" {
		pattern := like(f.Keyword)
		text, args := "`name` LIKE ? ESCAPE '!' OR `base_url` LIKE ? ESCAPE '!' OR `key` = ?", []any{pattern, pattern, f.Keyword}
		if id, err := strconv.ParseInt(f.Keyword, 10, 64); err == nil {
			text, args = text+" OR `id` = ?", append(args, id)
		}
		w.add("("+text+")", args...)
	}
	if f.Group != "" {
		w.add("CONCAT(',', `group`, ',') LIKE ? ESCAPE '!'", like(","+strings.TrimSpace(f.Group)+","))
	}
	if f.Model != "" {
		w.add("`models` LIKE ? ESCAPE '!'", like(f.Model))
	}
	if f.Type != 0 && withType {
		w.add("`type` = ?", f.Type)
	}
	if f.Tag != "" {
		w.add("`tag` = ?", f.Tag)
	}
	if f.Enabled != nil {
		if *f.Enabled {
			w.add("`status` = 1")
		} else {
			w.add("`status` <> 1")
		}
	}
	return w
}

// ChannelIDs returns the ids of at most MaxChannelsAtOnce channels with a tag (any, if it is empty) and one of the
// statuses (any, if none is given).
func (s *Store) ChannelIDs(ctx context.Context, tag string, statuses ...int) ([]int64, error) {
	w := &conditions{}
	if tag != "" {
		w.add("`tag` = ?", tag)
	}
	if len(statuses) > 0 {
		args := make([]any, len(statuses))
		for i, st := range statuses {
			args[i] = st
		}
		w.add("`status` IN ("+marks(len(args))+")", args...)
	}
	ids, err := s.readIDs(ctx, "SELECT id FROM channels"+w.String()+" ORDER BY id LIMIT "+strconv.Itoa(MaxChannelsAtOnce), w.args...)
	if err != nil {
		return nil, fmt.Errorf("list channels: %w", err)
	}
	return ids, nil
}

// ChannelNames returns the names of channels by id. Those that are gone are not in it.
func (s *Store) ChannelNames(ctx context.Context, ids []int64) (map[int64]string, error) {
	names := make(map[int64]string, len(ids))
	err := chunks(sorted(ids), func(list []int64) error {
		q := new(statement).text("SELECT id, COALESCE(`name`, '') FROM channels WHERE id IN (").ints(list).text(")")
		return s.read(ctx, q.String(), nil, func(scan func(...any) error) error {
			var id int64
			var name string
			err := scan(&id, &name)
			names[id] = name
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read the names of channels: %w", err)
	}
	return names, nil
}
