package dialect

// DefaultErrorType is the type of every refusal that names none, as clients of New API know it.
const DefaultErrorType = "new_api_error"

// Problem is a refusal or an upstream's failure as a client may see it: a public text, no secrets, no addresses.
type Problem struct {
	Status  int    // HTTP status
	Code    string // machine-readable, "" where New API has none
	Type    string // "" means DefaultErrorType
	Message string
	Param   string // the field at fault, "" if none
	// Middleware marks a refusal that comes before the relay proper (key, group, model, channel, body). Its shape is
	// OpenAI's without param, whatever API was called.
	Middleware bool
	// Verbatim keeps the message as it is: what an OpenAI-compatible upstream said carries no request id of ours.
	Verbatim bool
}

// Error makes a Problem usable as an error inside the relay.
func (p *Problem) Error() string { return p.Message }

// AppendError appends the body of p for a client of d. requestID, if not empty, ends the message as
// "(request id: X)", so that a user can name the request to the operator.
func AppendError(dst []byte, d Dialect, p *Problem, requestID string) []byte {
	kind, msg := p.Type, p.Message
	if kind == "" {
		kind = DefaultErrorType
	}
	if requestID != "" && !p.Verbatim {
		msg += " (request id: " + requestID + ")"
	}
	if d == Anthropic && !p.Middleware {
		dst = appendString(append(dst, `{"type":"error","error":{"type":`...), kind)
		dst = appendString(append(dst, `,"message":`...), msg)
		return append(dst, "}}"...)
	}
	dst = appendString(append(dst, `{"error":{"message":`...), msg)
	dst = appendString(append(dst, `,"type":`...), kind)
	if !p.Middleware {
		dst = appendString(append(dst, `,"param":`...), p.Param)
	}
	dst = appendString(append(dst, `,"code":`...), p.Code)
	return append(dst, "}}"...)
}
