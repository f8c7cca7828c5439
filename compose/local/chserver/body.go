package main

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/ClickHouse/ch-go/compress"
)

// readBody reads a request's body and undoes its compression: of HTTP (Content-Encoding) or of ClickHouse's blocks
// (parameter `decompress`).
func readBody(r *http.Request, parameters url.Values) ([]byte, error) {
	limited := &io.LimitedReader{R: r.Body, N: maxBodyBytes + 1}
	var body io.Reader = limited
	var err error
	switch encoding := r.Header.Get("Content-Encoding"); encoding {
	case "":
	case "gzip":
		body, err = gzip.NewReader(limited)
	case "deflate":
		body, err = zlib.NewReader(limited)
	default:
		err = fmt.Errorf("Content-Encoding %s is not known", encoding)
	}
	if err == nil && parameters.Get("decompress") == "1" {
		body = blockReader{compress.NewReader(body)}
	}
	var text []byte
	if err == nil {
		text, err = io.ReadAll(io.LimitReader(body, maxBodyBytes+1))
	}
	if err == nil && (limited.N == 0 || len(text) > maxBodyBytes) {
		err = fmt.Errorf("the body is larger than %d bytes", maxBodyBytes)
	}
	if err != nil {
		return nil, fmt.Errorf("Code: 27. DB::Exception: read the body: %w. (CANNOT_PARSE_INPUT_ASSERTION_FAILED)", err)
	}
	return text, nil
}

// blockReader turns the wrapped end of the last block into a plain io.EOF.
type blockReader struct{ r io.Reader }

func (b blockReader) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if errors.Is(err, io.EOF) {
		err = io.EOF
	}
	return n, err
}

// blockBytes is how much goes into one compressed block: ClickHouse's own default.
const blockBytes = 1 << 20

// answer writes a result, compressed as the request asked for it.
func answer(w http.ResponseWriter, r *http.Request, parameters url.Values, out result) {
	summary, _ := json.Marshal(map[string]string{
		"read_rows": strconv.FormatUint(out.rowsRead, 10), "written_rows": strconv.FormatUint(out.rowsWritten, 10),
		"result_bytes": strconv.Itoa(len(out.body)),
	})
	w.Header().Set("X-ClickHouse-Summary", string(summary))
	w.Header().Set("X-ClickHouse-Query-Id", parameters.Get("query_id"))
	w.Header().Set("Content-Type", "application/octet-stream")
	body := out.body
	if parameters.Get("compress") == "1" {
		blocks, err := compressBlocks(body, parameters.Get("network_compression_method"))
		if err != nil {
			fail(w, err)
			return
		}
		body = blocks
	}
	if len(body) > 0 {
		packed, encoding, err := encode(body, r.Header.Get("Accept-Encoding"))
		if err != nil {
			fail(w, err)
			return
		}
		if encoding != "" {
			w.Header().Set("Content-Encoding", encoding)
			body = packed
		}
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	if r.Method != http.MethodHead {
		_, _ = w.Write(body) // a client that went away is its own affair
	}
}

func compressBlocks(body []byte, method string) ([]byte, error) {
	m := compress.LZ4
	if strings.EqualFold(method, "ZSTD") {
		m = compress.ZSTD
	}
	w := compress.NewWriter(compress.LevelZero, m)
	var out []byte
	for len(body) > 0 {
		n := min(len(body), blockBytes)
		if err := w.Compress(body[:n]); err != nil {
			return nil, fmt.Errorf("compress the result: %w", err)
		}
		out, body = append(out, w.Data...), body[n:]
	}
	return out, nil
}

// encode applies the first encoding of Accept-Encoding that is known here.
func encode(body []byte, accept string) (packed []byte, encoding string, err error) {
	var out bytes.Buffer
	var w io.WriteCloser
	switch {
	case strings.Contains(accept, "gzip"):
		w, encoding = gzip.NewWriter(&out), "gzip"
	case strings.Contains(accept, "deflate"):
		w, encoding = zlib.NewWriter(&out), "deflate" // HTTP means zlib's format by this name
	default:
		return nil, "", nil
	}
	_, err = w.Write(body)
	err = errors.Join(err, w.Close())
	return out.Bytes(), encoding, err
}
