package console

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"ledgerline/ledger/sqlstore"
)

// Bounds of a request's body (L7): New API's for callers without a login, and room for a full price table or a few thousand
// channel keys for the others.
const (
	maxAnonymousBody = 512 << 10
	maxBody          = 8 << 20
)

// New API's page sizes.
const (
	pageDefault = 10
	pageMost    = sqlstore.MaxPage
	// maxPageNumber keeps page × size within an int.
	maxPageNumber = 1 << 30
)

// call is one request.
type call struct {
	echo.Context
	console *Console
	id      string // request id
	me      *identity
}

// ctx is the request's context; it names who is calling for the audit trail.
func (x *call) ctx() context.Context { return x.Request().Context() }

// body is the part of New API's envelope that every answer has.
type envelope struct {
	Success bool   `json:"success"`
	Message string `json:"message"`
}

type envelopeData struct {
	Data    any    `json:"data"`
	Message string `json:"message"`
	Success bool   `json:"success"`
}

// done answers a request that has no data to show.
func (x *call) done() error { return x.JSON(http.StatusOK, envelope{Success: true}) }

// data answers with data.
func (x *call) data(v any) error { return x.JSON(http.StatusOK, envelopeData{Data: v, Success: true}) }

// refusal is an error that the client is told. Its status is 200, as New API answers what is wrong with a request, unless
// it is about who is asking.
type refusal struct {
	status  int
	code    string
	message string
}

func (r *refusal) Error() string { return r.message }

// no refuses a request with a text.
func no(format string, args ...any) error {
	return &refusal{status: http.StatusOK, message: fmt.Sprintf(format, args...)}
}

// Refusals with one text.
var errMissing = no("record not found")

// wrong refuses a field of a request: New API's words, then which field and what is allowed.
func wrong(format string, args ...any) error { return no("Invalid parameters: "+format, args...) }

// errID refuses a request that names nothing to change.
var errID = wrong("id must be a whole number above 0")

type refusalBody struct {
	Code    string `json:"code,omitempty"`
	Message string `json:"message"`
	Success bool   `json:"success"`
}

// fail answers with an error: what a refusal says, or that something is wrong here.
func (x *call) fail(err error) error {
	var r *refusal
	switch {
	case errors.As(err, &r):
	case errors.Is(err, sqlstore.ErrNotFound):
		r = errMissing.(*refusal) //nolint:errorlint,forcetypeassert // made by no
	case errors.Is(err, sqlstore.ErrExists):
		r = &refusal{status: http.StatusOK, message: "it exists already"}
	case errors.Is(err, sqlstore.ErrGrant):
		r = &refusal{status: http.StatusOK, message: sqlstore.ErrGrant.Error()}
	case x.ctx().Err() != nil:
		return nil // nobody is listening any more
	default:
		x.console.log.Error("a management request failed", "request", x.id, "method", x.Request().Method, "path", x.Path(), "error", err)
		r = &refusal{status: http.StatusInternalServerError, message: "internal error, see the log for request " + x.id}
	}
	return x.JSON(r.status, refusalBody{Code: r.code, Message: r.message})
}

// read decodes the request's JSON body. Unknown members are ignored, as New API does.
func (x *call) read(into any) error {
	body, err := io.ReadAll(x.Request().Body)
	if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return &refusal{status: http.StatusRequestEntityTooLarge, message: fmt.Sprintf("the body is larger than %d bytes", tooLarge.Limit)}
	}
	if err != nil {
		return wrong("the body could not be read: %v", err)
	}
	err = json.Unmarshal(body, into)
	if kind, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && kind.Field != "" {
		return wrong("%s must be %s, not a JSON %s", strings.ToLower(kind.Field), jsonKind(kind.Type), kind.Value)
	} else if err != nil {
		return wrong("the body must be a JSON object: %v", err)
	}
	return nil
}

// jsonKind says of what a field is made.
func jsonKind(t reflect.Type) string {
	if t == reflect.TypeFor[json.Number]() {
		return "a number"
	}
	switch t.Kind() {
	case reflect.Pointer:
		return jsonKind(t.Elem())
	case reflect.Bool:
		return "true or false"
	case reflect.Float64:
		return "a number"
	case reflect.String:
		return "a string"
	case reflect.Slice:
		return "a list"
	case reflect.Struct, reflect.Map:
		return "an object"
	default:
		return "a whole number"
	}
}

// idParam reads the id in the path.
func (x *call) idParam() (int64, error) {
	id, err := strconv.ParseInt(x.Param("id"), 10, 64)
	if err != nil || id <= 0 {
		return 0, errID
	}
	return id, nil
}

// paging is the page a list request asks for.
type paging struct{ number, size int }

// page reads New API's paging parameters: p from 1; page_size, or ps, or size. What is out of bounds is moved into them.
func (x *call) page() paging {
	p := paging{number: 1, size: pageDefault}
	if n, err := strconv.Atoi(x.QueryParam("p")); err == nil && n > 1 {
		p.number = min(n, maxPageNumber)
	}
	for _, name := range []string{"page_size", "ps", "size"} {
		if n, err := strconv.Atoi(x.QueryParam(name)); err == nil && n > 0 {
			p.size = min(n, pageMost)
			break
		}
	}
	return p
}

func (p paging) skip() int { return (p.number - 1) * p.size }

func (p paging) rows() sqlstore.Page { return sqlstore.Page{Skip: p.skip(), Limit: p.size} }

// listing is New API's page.
type listing struct {
	Page     int `json:"page"`
	PageSize int `json:"page_size"`
	Total    int `json:"total"`
	Items    any `json:"items"`
}

func (x *call) list(p paging, total int, items any) error {
	return x.data(listing{p.number, p.size, total, items})
}

// handler answers one endpoint. An error it returns goes through fail.
type handler func(x *call) error

// anonymous serves an endpoint that needs no login.
func (c *Console) anonymous(h handler) echo.HandlerFunc {
	return func(e echo.Context) error {
		x := c.begin(e, maxAnonymousBody)
		if err := h(x); err != nil {
			return x.fail(err)
		}
		return nil
	}
}

// begin dresses a request: its id, its headers, the bound on its body.
func (c *Console) begin(e echo.Context, most int64) *call {
	x := &call{Context: e, console: c, id: requestID(c.now())}
	h := e.Response().Header()
	h.Set("X-Oneapi-Request-Id", x.id)
	h.Set("X-New-Api-Version", c.cfg.Version)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	r := e.Request()
	r.Body = http.MaxBytesReader(e.Response(), r.Body, most)
	return x
}

// requestID makes an id in New API's form: the time, and random characters.
func requestID(now time.Time) string {
	return now.UTC().Format("20060102150405") + fmt.Sprintf("%09d", now.Nanosecond()) + rand.Text()[:16]
}
