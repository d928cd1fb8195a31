package health

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
)

func TestOneBadMetricDoesNotHideTheOthers(t *testing.T) {
	good := prometheus.NewRegistry()
	good.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "good_metric"}, func() float64 { return 7 }))
	bad := prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) { return nil, errors.New("collected twice") })
	w := httptest.NewRecorder()
	New(prometheus.Gatherers{good, bad}).Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	if w.Code != http.StatusOK || !strings.Contains(w.Body.String(), "good_metric 7") {
		t.Fatalf("%d %s", w.Code, w.Body)
	}
}
