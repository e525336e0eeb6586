package serve

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// metrics answers GET /metrics in Prometheus' text format, under vLLM's names.
func (s *Server) metrics(w http.ResponseWriter, _ *http.Request) error {
	stats := s.engine.Stats()
	queries, hits := s.images.counts()
	var b strings.Builder
	labels := `engine="0",model_name=` + strconv.Quote(s.options.Name)
	write := func(name, kind, help string, value float64, extra ...string) {
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, kind)
		fmt.Fprintf(&b, "%s{%s} %v\n", name, strings.Join(append([]string{labels}, extra...), ","), value)
	}
	write("vllm:num_requests_running", "gauge", "Traces being decoded.", float64(stats.Running))
	write("vllm:num_requests_waiting", "gauge", "Traces waiting to be decoded.", float64(stats.Waiting))
	write("vllm:kv_cache_usage_perc", "gauge", "Share of the key-value cache in use, 0 to 1.", stats.CacheUsage)
	write("vllm:engine_sleep_state", "gauge", "1 while the engine is awake; it never sleeps.", 1, `sleep_state="awake"`)
	write("vllm:prompt_tokens_total", "counter", "Prompt tokens taken in.", float64(stats.PromptTokens))
	write("vllm:generation_tokens_total", "counter", "Tokens generated.", float64(stats.GenerationTokens))
	write("vllm:prefix_cache_queries_total", "counter", "Prompt tokens looked up in the prefix cache.", float64(stats.PrefixQueries))
	write("vllm:prefix_cache_hits_total", "counter", "Prompt tokens found in the prefix cache.", float64(stats.PrefixHits))
	write("vllm:mm_cache_queries_total", "counter", "Images looked up in the cache of preprocessed images.", float64(queries))
	write("vllm:mm_cache_hits_total", "counter", "Images found there.", float64(hits))
	write("vllm:num_preemptions_total", "counter", "Preempted traces; this engine preempts none.", 0)
	fmt.Fprintf(&b, "# HELP vllm:iteration_tokens_total Tokens generated in each step.\n# TYPE vllm:iteration_tokens_total histogram\n")
	for _, series := range []struct {
		name  string
		value int64
	}{{`bucket{le="+Inf",`, stats.Iterations}, {"sum{", stats.GenerationTokens}, {"count{", stats.Iterations}} {
		fmt.Fprintf(&b, "vllm:iteration_tokens_total_%s%s} %d\n", series.name, labels, series.value)
	}
	fmt.Fprintf(&b, "# HELP vllm:request_success_total Finished traces.\n# TYPE vllm:request_success_total counter\n")
	for _, reason := range []struct {
		name  string
		count int64
	}{{"stop", stats.Stopped}, {"length", stats.Length}, {"abort", stats.Aborted}} {
		fmt.Fprintf(&b, "vllm:request_success_total{%s,finished_reason=%q} %d\n", labels, reason.name, reason.count)
	}
	fmt.Fprintf(&b, "# HELP uadt:weight_swaps_total Weights loaded after the first.\n# TYPE uadt:weight_swaps_total counter\nuadt:weight_swaps_total{%s} %d\n",
		labels, stats.Swaps)
	fmt.Fprintf(&b, "# HELP process_start_time_seconds Start of the server, seconds since 1970.\n# TYPE process_start_time_seconds gauge\nprocess_start_time_seconds %d\n",
		s.started.Unix())
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	_, err := w.Write([]byte(b.String()))
	return err
}
