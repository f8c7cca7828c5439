package relay

import (
	"encoding/json"
	"net/http"
	"strings"
)

// modelCreated is the creation time that New API reports for every model.
const modelCreated = 1626777600

type modelEntry struct {
	ID        string   `json:"id"`
	Object    string   `json:"object"`
	Created   int64    `json:"created"`
	OwnedBy   string   `json:"owned_by"`
	Endpoints []string `json:"supported_endpoint_types"`
}

func entryOf(model string) modelEntry {
	return modelEntry{model, "model", modelCreated, "custom", []string{"openai"}}
}

// models returns what the key may call: models that have a channel in one of its groups, that its limits allow, and that have a
// price.
func (x *exchange) models() []modelEntry {
	out := []modelEntry{}
	for _, m := range x.routes.Models(x.groups) {
		if !x.token.AllowsModel(m) {
			continue
		}
		if _, err := x.routes.Book.Quote(m, x.user.Group, x.groups[0]); err != nil && !x.user.AcceptUnpriced {
			continue
		}
		out = append(out, entryOf(m))
	}
	return out
}

// listModels answers GET /v1/models.
func (s *Server) listModels(w http.ResponseWriter, r *http.Request) {
	x := s.begin(w, r, "models")
	defer x.done()
	if p := x.authenticate(); p != nil {
		x.fail(p)
		return
	}
	x.json(map[string]any{"success": true, "object": "list", "data": x.models()})
}

// oneModel answers GET /v1/models/{id}. An unknown model is answered with an error object and, as New API does, status 200.
func (s *Server) oneModel(w http.ResponseWriter, r *http.Request) {
	model := strings.TrimPrefix(r.URL.Path, "/v1/models/") // names may have slashes
	x := s.begin(w, r, "models")
	defer x.done()
	if p := x.authenticate(); p != nil {
		x.fail(p)
		return
	}
	for _, m := range x.models() {
		if m.ID == model {
			x.json(m)
			return
		}
	}
	x.json(map[string]any{"error": map[string]any{
		"message": "The model '" + model + "' does not exist", "type": "invalid_request_error", "param": "model", "code": "model_not_found",
	}})
}

func (x *exchange) json(v any) {
	body, err := json.Marshal(v)
	if err != nil {
		panic("relay: an answer of our own does not encode: " + err.Error())
	}
	x.status, x.wrote = http.StatusOK, true
	x.w.Header().Set("Content-Type", "application/json; charset=utf-8")
	x.w.WriteHeader(http.StatusOK)
	_, _ = x.w.Write(body)
}
