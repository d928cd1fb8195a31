package audit

import (
	"net/http"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/bulwark-mesh/bulwark/pkg/printable"
)

// ServeHTTP answers GET /v1/audit with the selected records as lines of JSON, and goes on with new ones if the reader
// follows.
func (t *Trail) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	filter, err := ParseFilter(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	control := http.NewResponseController(w)
	records, position, changed := t.Recent(0)
	for {
		_ = control.SetWriteDeadline(time.Now().Add(30 * time.Second)) // a reader that stops reading is let go
		for _, record := range filter.Select(records) {
			line, err := protojson.Marshal(record)
			if err != nil {
				return
			}
			if _, err := w.Write(append(printable.JSON(line), '\n')); err != nil {
				return
			}
		}
		if err := control.Flush(); err != nil || !filter.Follow {
			return
		}
		filter.Last = 0
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		}
		records, position, changed = t.Recent(position)
	}
}
