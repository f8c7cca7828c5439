package relay

import (
	"net/http"
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"ledgerline/relay/dialect"
)

type metrics struct {
	inFlight  prometheus.Gauge
	requests  *prometheus.CounterVec
	refusals  *prometheus.CounterVec
	anomalies *prometheus.CounterVec
	duration  *prometheus.HistogramVec
	firstByte prometheus.Histogram
	excess    prometheus.Counter
	charged   prometheus.Counter

	// The children that nearly every request needs, so that their labels are looked up once.
	served        map[string]prometheus.Counter // requests with status 200, by endpoint
	plain, stream prometheus.Observer           // of duration
}

func newMetrics(reg prometheus.Registerer) *metrics {
	const ns, sub = "ledgerline", "relay"
	m := &metrics{
		inFlight: prometheus.NewGauge(prometheus.GaugeOpts{Namespace: ns, Subsystem: sub, Name: "in_flight", Help: "Requests being served."}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: ns, Subsystem: sub, Name: "requests_total", Help: "Requests by endpoint (those of relay/dialect, models, other) and HTTP status.",
		}, []string{"endpoint", "status"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: ns, Subsystem: sub, Name: "refusals_total",
			Help: "Refused requests by code: New API's (insufficient_user_quota, pre_consume_token_quota_failed, model_not_found, " +
				"model_price_error, access_denied, read_request_body_failed, …), ours (quota_held, counters_rebuilding, " +
				"counters_unreachable, node_full, journal_failed, log_unreachable, node_stopping), upstream, none.",
		}, []string{"code"}),
		anomalies: prometheus.NewCounterVec(prometheus.CounterOpts{
			Namespace: ns, Subsystem: sub, Name: "usage_anomalies_total", Help: "Anomalies in reported usage by kind; the kinds and their rules are listed in relay/meter.",
		}, []string{"kind"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Namespace: ns, Subsystem: sub, Name: "request_seconds", Help: "From arrival to the last byte, by stream (true, false).",
			Buckets: prometheus.ExponentialBuckets(0.001, 2.5, 14),
		}, []string{"stream"}),
		firstByte: prometheus.NewHistogram(prometheus.HistogramOpts{
			Namespace: ns, Subsystem: sub, Name: "first_byte_seconds", Help: "From arrival to the first byte of a stream.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2.5, 12),
		}),
		excess: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: ns, Subsystem: sub, Name: "excess_quota_total",
			Help: "Quota units charged above the hold because the upstream reported more than it was priced for (L3, first exception).",
		}),
		charged: prometheus.NewCounter(prometheus.CounterOpts{
			Namespace: ns, Subsystem: sub, Name: "charged_quota_total", Help: "Quota units charged by this node.",
		}),
	}
	m.plain, m.stream = m.duration.WithLabelValues("false"), m.duration.WithLabelValues("true")
	m.served = map[string]prometheus.Counter{}
	for _, ep := range []dialect.Endpoint{dialect.ChatCompletions, dialect.Completions, dialect.Embeddings} {
		m.served[ep.String()] = m.requests.WithLabelValues(ep.String(), strconv.Itoa(http.StatusOK))
	}
	if reg != nil {
		reg.MustRegister(m.inFlight, m.requests, m.refusals, m.anomalies, m.duration, m.firstByte, m.excess, m.charged)
	}
	return m
}

// upstreamCode stands for codes that upstreams make: they are not ours to list, and must not become label values (L7).
const upstreamCode = "upstream"

func (m *metrics) observe(x *exchange) {
	if served := m.served[x.label]; served != nil && x.status == http.StatusOK {
		served.Inc()
	} else {
		m.requests.WithLabelValues(x.label, strconv.Itoa(x.status)).Inc()
	}
	if x.event == nil && x.status >= 400 {
		code := x.code
		switch {
		case x.channel != nil:
			code = upstreamCode
		case code == "":
			code = "none"
		}
		m.refusals.WithLabelValues(code).Inc()
		return
	}
	duration := m.plain
	if x.req.Stream {
		duration = m.stream
	}
	duration.Observe(x.s.now().Sub(x.start).Seconds())
	if !x.first.IsZero() && x.req.Stream {
		m.firstByte.Observe(x.first.Sub(x.start).Seconds())
	}
}
