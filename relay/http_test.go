package relay_test

import (
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/labstack/echo/v4"

	"ledgerline/relay"
)

// routes are a part that has one route.
type routes struct{}

func (routes) Mount(e *echo.Echo) { e.GET("/v1/models", echo.NotFoundHandler) }

// A browser at the root is told what this is and what is here; a slave that knows the address of a console sends it there.
func TestRoot(t *testing.T) {
	get := func(redirect string, parts ...relay.Routes) *httptest.ResponseRecorder {
		t.Helper()
		h := relay.NewHandler(relay.HandlerConfig{
			Metrics: http.NotFoundHandler(), Problems: func() []string { return nil }, RedirectTo: redirect, Parts: parts, Logger: slog.New(slog.DiscardHandler),
		})
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/", nil))
		return w
	}
	if w := get("", routes{}); w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "/v1") {
		t.Errorf("root: %d %q", w.Code, w.Body)
	}
	if w := get(""); w.Code != http.StatusOK || strings.Contains(w.Body.String(), "/v1") || !strings.Contains(w.Body.String(), "/metrics") {
		t.Errorf("root of consumers: %d %q", w.Code, w.Body)
	}
	const console = "https://console.example"
	if w := get(console); w.Code != http.StatusMovedPermanently || w.Header().Get("Location") != console+"/" {
		t.Errorf("root of a slave: %d to %q", w.Code, w.Header().Get("Location"))
	}
}
