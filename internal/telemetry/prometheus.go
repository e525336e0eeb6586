package telemetry

import (
	"net/http"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Prometheus is a sink that keeps the latest value of every metric in a
// registry of its own.
type Prometheus struct {
	registry *prometheus.Registry
	metric   *prometheus.GaugeVec
	step     *prometheus.GaugeVec
	dropped  *prometheus.CounterVec
	alarms   *prometheus.CounterVec
}

// NewPrometheus returns a sink whose metrics carry the label run.
func NewPrometheus(run string) *Prometheus {
	labels := prometheus.Labels{"run": run}
	p := &Prometheus{
		registry: prometheus.NewRegistry(),
		metric: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "uadt_train_metric",
			Help: "Latest value of a metric of the run; name is that of metrics.jsonl.", ConstLabels: labels}, []string{"stage", "name"}),
		step: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "uadt_train_step",
			Help: "Steps of the stage that are done.", ConstLabels: labels}, []string{"stage"}),
		dropped: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "uadt_train_groups_dropped_total",
			Help: "Groups that were not trained, by reason.", ConstLabels: labels}, []string{"reason"}),
		alarms: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "uadt_train_alarms_total",
			Help: "Named alarms that were raised.", ConstLabels: labels}, []string{"name"}),
	}
	p.registry.MustRegister(p.metric, p.step, p.dropped, p.alarms)
	return p
}

// Emit implements Sink.
func (p *Prometheus) Emit(e Event) {
	switch e := e.(type) {
	case StepDone:
		p.step.WithLabelValues(e.Stage).Set(float64(e.Step))
		p.set(e.Stage, e.Metrics)
	case Evaluated:
		p.set(e.Stage, e.Metrics)
	case GroupDropped:
		p.dropped.WithLabelValues(strings.ToValidUTF8(e.Reason, "\uFFFD")).Inc() // it may come from another process
	case Alarm:
		p.alarms.WithLabelValues(e.Name).Inc()
	}
}

// Handler serves the registry in the Prometheus text format.
func (p *Prometheus) Handler() http.Handler {
	return promhttp.HandlerFor(p.registry, promhttp.HandlerOpts{})
}

func (p *Prometheus) set(stage string, metrics Metrics) {
	for name, value := range metrics {
		p.metric.WithLabelValues(stage, name).Set(value)
	}
}
