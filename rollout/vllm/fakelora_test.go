package vllm

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// models answers /v1/models: an adapter that others loaded, the base, and what
// was loaded since.
func (f *fake) models(w http.ResponseWriter) {
	f.mu.Lock()
	defer f.mu.Unlock()
	data := []string{`{"id":"adapter","parent":"policy"}`, `{"id":"policy","root":"x","parent":null,"max_model_len":65536}`}
	for _, a := range f.adapters {
		name, path, _ := strings.Cut(a, "=")
		data = append(data, fmt.Sprintf(`{"id":%q,"root":%q,"parent":"policy"}`, name, path))
	}
	fmt.Fprintf(w, `{"object":"list","data":[%s]}`, strings.Join(data, ","))
}

// adapter is the path of the adapter that is served under name.
func (f *fake) adapter(name string) (path string, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.adapters {
		if path, ok := strings.CutPrefix(a, name+"="); ok {
			return path, true
		}
	}
	return "", false
}

// names lists the adapters that are served.
func (f *fake) names() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var names []string
	for _, a := range f.adapters {
		name, _, _ := strings.Cut(a, "=")
		names = append(names, name)
	}
	return names
}

// lora answers the routes of adapters as vLLM 0.25.1 does, unless the server
// was started without them.
func (f *fake) lora(w http.ResponseWriter, r *http.Request, body []byte) bool {
	load := r.URL.Path == "/v1/load_lora_adapter"
	f.mu.Lock()
	has := f.adapters != nil
	f.mu.Unlock()
	if !load && r.URL.Path != "/v1/unload_lora_adapter" || !has {
		return false
	}
	var q struct {
		Name string `json:"lora_name"`
		Path string `json:"lora_path"`
	}
	if err := json.Unmarshal(body, &q); err != nil || q.Name == "" || load && q.Path == "" {
		f.t.Errorf("%s with %s", r.URL.Path, body)
	}
	_, known := f.adapter(q.Name)
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case load && known:
		refuse(w, 400, fmt.Sprintf(`{"error":{"message":"The lora adapter '%s' has already been loaded.","type":"InvalidUserInput","param":null,"code":400}}`, q.Name))
	case load && strings.Contains(q.Path, "missing"):
		refuse(w, 404, fmt.Sprintf(`{"error":{"message":"Loading lora %s failed: No adapter found for %s","type":"NotFoundError","param":null,"code":404}}`, q.Name, q.Path))
	case load:
		f.adapters = append(f.adapters, q.Name+"="+q.Path)
		fmt.Fprintf(w, "Success: LoRA adapter '%s' added successfully.", q.Name)
	case !known:
		refuse(w, 404, fmt.Sprintf(`{"error":{"message":"The lora adapter '%s' cannot be found.","type":"NotFoundError","param":null,"code":404}}`, q.Name))
	default:
		kept := []string{}
		for _, a := range f.adapters {
			if !strings.HasPrefix(a, q.Name+"=") {
				kept = append(kept, a)
			}
		}
		f.adapters = kept
		fmt.Fprintf(w, "Success: LoRA adapter '%s' removed successfully.", q.Name)
	}
	return true
}
