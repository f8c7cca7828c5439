package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
)

const (
	// benchAccess is the management token of the node's root user.
	benchAccess = "benchAccessToken0123456789abcdef"
	// rootID is the first user of a fresh database, benchToken the first key.
	rootID, benchToken = 1, 1
)

// seedBuild puts in what seed does, through the management API: a build that is compared may have another database schema than this one.
func (b *bench) seedBuild(ctx context.Context, node string) (key string, err error) {
	for _, step := range []struct {
		path string
		body any
	}{
		{"/api/user/manage", map[string]any{"id": rootID, "action": "add_quota", "mode": "override", "value": benchQuota}},
		{"/api/channel/", map[string]any{"mode": "single", "channel": map[string]any{
			"name": "mock", "type": 1, "key": "mock-key", "base_url": b.upstream.url, "models": demoModel, "group": "default",
		}}},
		{"/api/token/", map[string]any{"name": "bench", "remain_quota": benchQuota, "expired_time": -1}},
		{fmt.Sprintf("/api/token/%d/key", benchToken), nil},
	} {
		data := struct {
			Key string `json:"key"`
		}{}
		if err := manage(ctx, node+step.path, step.body, &data); err != nil {
			return "", fmt.Errorf("prepare the node: %w", err)
		}
		key = data.Key
	}
	return "sk-" + key, nil
}

// manage makes one call of the management API.
func manage(ctx context.Context, url string, body, data any) error {
	text, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("build request: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(text))
	if err != nil {
		return fmt.Errorf("build request: %w", err)
	}
	req.Header.Set("Authorization", benchAccess)
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("call the management API: %w", err)
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("read the answer of %s: %w", req.URL.Path, err)
	}
	var got struct {
		Success bool            `json:"success"`
		Message string          `json:"message"`
		Data    json.RawMessage `json:"data"`
	}
	if err := json.Unmarshal(answer, &got); err != nil || !got.Success {
		return fmt.Errorf("%s answered %s: %.200s", req.URL.Path, resp.Status, answer)
	}
	_ = json.Unmarshal(got.Data, data) // calls that return nothing of interest have other shapes
	return nil
}
