package console

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"ledgerline/ledger/sqlstore"
	"ledgerline/relay/catalog"
	"ledgerline/relay/upstream"
)

// maxModelList bounds an upstream's list of models (L7): those that resell everybody's have about a megabyte.
const maxModelList = 8 << 20

// NewModelLister returns a function for Config.ListModels: it asks an upstream that speaks OpenAI's API.
func NewModelLister(up *upstream.Client) func(ctx context.Context, ch *catalog.Channel, key string) ([]string, error) {
	return func(ctx context.Context, ch *catalog.Channel, key string) ([]string, error) {
		if ch.Type == upstream.TypeAzure {
			return nil, errors.New("an Azure resource cannot be asked for its deployments: name them as models")
		}
		ctx, cancel := context.WithTimeout(ctx, testWithin)
		defer cancel()
		resp, err := up.Do(ctx, upstream.Call{Channel: ch, Key: key, Path: "/v1/models", Get: true, RequestID: requestID(time.Now())})
		if errors.Is(err, upstream.ErrUnsupported) {
			return nil, upstream.ErrUnsupported
		}
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		body, err := upstream.ReadAll(resp.Body, maxModelList)
		if err != nil {
			return nil, err
		}
		var list struct{ Data []struct{ ID string } }
		switch {
		case resp.StatusCode != http.StatusOK:
			return nil, fmt.Errorf("the upstream answered %d", resp.StatusCode)
		case json.Unmarshal(body, &list) != nil:
			return nil, errors.New("the upstream's answer is no list of models")
		}
		names := make([]string, 0, len(list.Data))
		for _, m := range list.Data {
			if m.ID != "" {
				names = append(names, m.ID)
			}
		}
		return names, nil
	}
}

// fetchModels answers GET /api/channel/fetch_models/:id, with the channel's first usable key.
func fetchModels(x *call) error {
	id, err := x.idParam()
	if err != nil {
		return err
	}
	ch := x.console.cfg.Catalog.Routes().Channel(id)
	if ch == nil {
		return errMissing
	}
	if len(ch.Keys) == 0 {
		return no("all keys of the channel are disabled")
	}
	return x.models(ch, ch.Keys[0].Value)
}

// fetchModelsOfForm answers POST /api/channel/fetch_models: the models of a channel that is not stored yet.
func fetchModelsOfForm(x *call) error {
	var in struct {
		Type    int
		Key     string
		BaseURL string `json:"base_url"`
	}
	if err := x.read(&in); err != nil {
		return err
	}
	keys := sqlstore.SplitKeys(in.Key)
	if len(keys) == 0 {
		return no("there is no key to ask with")
	}
	return x.models(&catalog.Channel{Type: in.Type, BaseURL: strings.TrimRight(in.BaseURL, "/")}, keys[0])
}

func (x *call) models(ch *catalog.Channel, key string) error {
	if x.console.cfg.ListModels == nil {
		return no("this node cannot ask upstreams")
	}
	names, err := x.console.cfg.ListModels(x.ctx(), ch, key)
	if err != nil {
		return no("%v", err)
	}
	return x.data(names)
}
