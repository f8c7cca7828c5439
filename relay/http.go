package relay

import (
	"errors"
	"log/slog"
	"net/http"

	"github.com/labstack/echo/v4"
)

// Routes is a part of the API: the relay itself and the management API.
type Routes interface{ Mount(e *echo.Echo) }

// HandlerConfig is what the node's HTTP handler is built from.
type HandlerConfig struct {
	Parts []Routes
	// Metrics serves /metrics.
	Metrics http.Handler
	// Problems names what keeps the node from serving; empty means ready (/readyz).
	Problems func() []string
	// RedirectTo is where a slave sends browsers with paths that it does not know (FRONTEND_BASE_URL); "": nowhere.
	RedirectTo string
	Logger     *slog.Logger
}

// NewHandler builds the node's HTTP handler. /healthz says that the process runs, /readyz that it can serve requests.
func NewHandler(cfg HandlerConfig) http.Handler {
	e := echo.New()
	e.HideBanner, e.HidePort = true, true
	e.Use(cors)
	for _, part := range cfg.Parts {
		part.Mount(e)
	}
	e.GET("/healthz", func(c echo.Context) error { return c.String(http.StatusOK, "ok\n") })
	e.GET("/readyz", func(c echo.Context) error {
		if problems := cfg.Problems(); len(problems) > 0 {
			return c.JSON(http.StatusServiceUnavailable, map[string]any{"ready": false, "problems": problems})
		}
		return c.JSON(http.StatusOK, map[string]any{"ready": true})
	})
	e.GET("/metrics", echo.WrapHandler(cfg.Metrics))
	if cfg.RedirectTo == "" {
		about := "This is Ledgerline. OpenAI's API is at /v1, the management API at /api. There is no web console.\n"
		if len(cfg.Parts) == 0 {
			about = "This is Ledgerline, its consumers only: /readyz and /metrics are here, the APIs are on other nodes.\n"
		}
		e.GET("/", func(c echo.Context) error { return c.String(http.StatusOK, about) })
	}
	e.HTTPErrorHandler = cfg.unmatched
	return e
}

// cors lets browsers of any origin use the relay with a key, as New API does. The management API refuses cross-site writes
// by itself.
func cors(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if c.Request().Header.Get("Origin") == "" {
			return next(c)
		}
		h := c.Response().Header()
		h.Set("Access-Control-Allow-Origin", "*")
		if c.Request().Method != http.MethodOptions || c.Request().Header.Get("Access-Control-Request-Method") == "" {
			return next(c)
		}
		h.Set("Access-Control-Allow-Methods", "GET,POST,PUT,PATCH,DELETE,OPTIONS")
		allowed := c.Request().Header.Get("Access-Control-Request-Headers")
		if allowed == "" {
			allowed = "*"
		}
		h.Set("Access-Control-Allow-Headers", allowed)
		h.Set("Access-Control-Max-Age", "43200")
		return c.NoContent(http.StatusNoContent)
	}
}

// unmatched answers what no route took, in New API's shape.
func (cfg *HandlerConfig) unmatched(err error, c echo.Context) {
	if c.Response().Committed {
		return
	}
	r := c.Request()
	status := http.StatusInternalServerError
	var he *echo.HTTPError
	if errors.As(err, &he) {
		status = he.Code
	}
	if status == http.StatusNotFound && cfg.RedirectTo != "" {
		http.Redirect(c.Response(), r, cfg.RedirectTo+r.URL.RequestURI(), http.StatusMovedPermanently)
		return
	}
	message := "Invalid URL (" + r.Method + " " + r.URL.Path + ")"
	if status >= http.StatusInternalServerError {
		cfg.Logger.Error("a request failed", "path", r.URL.Path, "error", err)
		message = "internal error"
	}
	err = c.JSON(status, map[string]any{"error": map[string]any{
		"message": message, "type": "invalid_request_error", "param": "", "code": "",
	}})
	if err != nil {
		cfg.Logger.Debug("an error was not delivered", "error", err)
	}
}
