package console

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"ledgerline/ledger/sqlstore"
	"ledgerline/relay/catalog"
	"ledgerline/relay/upstream"
)

// setChannelStatus answers POST /api/channel/:id/status.
func setChannelStatus(x *call) error {
	id, err := x.idParam()
	if err != nil {
		return err
	}
	var in struct{ Status int }
	if err := x.read(&in); err != nil {
		return err
	}
	return x.changeStatus(in.Status, true, id)
}

// setChannelStatuses answers POST /api/channel/status/batch.
func setChannelStatuses(x *call) error {
	var in struct {
		IDs    []int64
		Status int
	}
	if err := x.read(&in); err != nil {
		return err
	}
	if len(in.IDs) == 0 || len(in.IDs) > maxBatch {
		return no("ids must name 1 to %d channels", maxBatch)
	}
	return x.changeStatus(in.Status, true, in.IDs...)
}

func (x *call) changeStatus(status int, show bool, ids ...int64) error {
	if err := checkChannelStatus(status); err != nil {
		return err
	}
	n, err := x.console.cfg.Store.SetChannelStatus(x.ctx(), ids, status)
	if err != nil {
		return err
	}
	x.effective()
	switch {
	case !show:
		return x.done()
	case len(ids) == 1:
		return x.data(true)
	}
	return x.data(n)
}

// tagStatus answers POST /api/channel/tag/enabled and disabled.
func tagStatus(status int) handler {
	return func(x *call) error {
		var in struct{ Tag string }
		if err := x.read(&in); err != nil {
			return err
		}
		if in.Tag == "" {
			return wrong("tag is needed")
		}
		ids, err := x.console.cfg.Store.ChannelIDs(x.ctx(), in.Tag)
		if err != nil {
			return err
		}
		return x.changeStatus(status, false, ids...)
	}
}

// deleteChannel answers DELETE /api/channel/:id.
func deleteChannel(x *call) error {
	id, err := x.idParam()
	if err != nil {
		return err
	}
	if _, err := x.console.cfg.Store.DeleteChannels(x.ctx(), id); err != nil {
		return err
	}
	x.effective()
	return x.done()
}

// deleteChannels answers POST /api/channel/batch.
func deleteChannels(x *call) error {
	ids, err := x.ids()
	if err != nil {
		return err
	}
	n, err := x.console.cfg.Store.DeleteChannels(x.ctx(), ids...)
	if err != nil {
		return err
	}
	x.effective()
	return x.data(n)
}

// deleteDisabledChannels answers DELETE /api/channel/disabled.
func deleteDisabledChannels(x *call) error {
	store := x.console.cfg.Store
	ids, err := store.ChannelIDs(x.ctx(), "", sqlstore.ChannelDisabled, sqlstore.ChannelAutoDisabled)
	if err != nil {
		return err
	}
	n, err := store.DeleteChannels(x.ctx(), ids...)
	if err != nil {
		return err
	}
	x.effective()
	return x.data(n)
}

// copyChannel answers POST /api/channel/copy/:id. The copy is disabled only if its original is.
func copyChannel(x *call) error {
	id, err := x.idParam()
	if err != nil {
		return err
	}
	store := x.console.cfg.Store
	c, err := store.Channel(x.ctx(), id)
	if err != nil {
		return err
	}
	suffix := x.QueryParam("suffix")
	if suffix == "" {
		suffix = "_copy"
	}
	c.Name += suffix
	if err := checkChannel(c); err != nil {
		return err
	}
	if id, err = store.CreateChannel(x.ctx(), *c); err != nil {
		return err
	}
	x.effective()
	return x.data(map[string]int64{"id": id})
}

// fixAbilities answers POST /api/channel/fix.
func fixAbilities(x *call) error {
	n, err := x.console.cfg.Store.FixAbilities(x.ctx())
	if err != nil {
		return err
	}
	return x.data(map[string]int{"success": n, "fails": 0})
}

type testView struct {
	Message string  `json:"message"`
	Success bool    `json:"success"`
	Time    float64 `json:"time"` // seconds
}

// testChannel answers GET /api/channel/test/:id.
func testChannel(x *call) error {
	id, err := x.idParam()
	if err != nil {
		return err
	}
	if _, err := x.console.cfg.Store.Channel(x.ctx(), id); err != nil {
		return err
	}
	if x.console.cfg.TestChannel == nil {
		return no("this node cannot test channels")
	}
	took, err := x.console.cfg.TestChannel(x.ctx(), id, x.QueryParam("model"))
	view := testView{Success: err == nil, Time: took.Seconds()}
	if err != nil {
		view.Message = err.Error()
	} else if err := x.console.cfg.Store.TestedChannel(x.ctx(), id, took.Milliseconds()); err != nil {
		return err
	}
	return x.JSON(http.StatusOK, view)
}

const (
	// testWithin bounds a channel test.
	testWithin = 30 * time.Second
	// maxTestAnswer bounds what is read of its answer (L7).
	maxTestAnswer = 1 << 20
)

// NewChannelTester returns a function for Config.TestChannel that asks a channel, with its first usable key, for a few
// tokens. Nobody is billed for it: it belongs to no user.
func NewChannelTester(cat *catalog.Catalog, up *upstream.Client) func(ctx context.Context, channel int64, model string) (time.Duration, error) {
	return func(ctx context.Context, channel int64, model string) (time.Duration, error) {
		ch := cat.Routes().Channel(channel)
		if ch == nil {
			return 0, errors.New("the channel is not known on this node yet")
		}
		if len(ch.Keys) == 0 {
			return 0, errors.New("all keys of the channel are disabled")
		}
		if model == "" {
			model = ch.TestModel
		}
		if model == "" && len(ch.Models) > 0 {
			model = ch.Models[0]
		}
		if model == "" {
			return 0, errors.New("the channel serves no model")
		}
		ctx, cancel := context.WithTimeout(ctx, testWithin)
		defer cancel()
		start := time.Now()
		err := ask(ctx, up, ch, model)
		return time.Since(start), err
	}
}

func ask(ctx context.Context, up *upstream.Client, ch *catalog.Channel, model string) error {
	sent, ok := ch.Sent(model)
	if !ok {
		return errors.New("the channel's model_mapping runs in a circle")
	}
	path, members := "/v1/chat/completions", map[string]any{
		"model": sent, "max_tokens": 16, "messages": []map[string]string{{"role": "user", "content": "hi"}},
	}
	if strings.Contains(strings.ToLower(sent), "embedding") {
		path, members = "/v1/embeddings", map[string]any{"model": sent, "input": "hi"}
	}
	body, err := json.Marshal(members)
	if err != nil {
		return fmt.Errorf("encode the test: %w", err)
	}
	resp, err := up.Do(ctx, upstream.Call{
		Channel: ch, Key: ch.Keys[0].Value, Path: path, Model: sent, Body: body, RequestID: requestID(time.Now()),
	})
	if errors.Is(err, upstream.ErrUnsupported) {
		return upstream.ErrUnsupported
	}
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, maxTestAnswer))
	if err != nil {
		return fmt.Errorf("read the answer: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("the upstream answered %d: %.300s", resp.StatusCode, bytes.ToValidUTF8(answer, nil))
	}
	var parsed map[string]json.RawMessage
	if json.Unmarshal(answer, &parsed) != nil {
		return errors.New("the upstream's answer is no JSON object")
	}
	if raw, ok := parsed["error"]; ok && string(raw) != "null" {
		return fmt.Errorf("the upstream answered with an error: %.300s", raw)
	}
	return nil
}
