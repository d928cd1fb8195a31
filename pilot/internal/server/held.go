package server

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	corev1 "k8s.io/api/core/v1"

	"github.com/bulwark-mesh/bulwark/pilot/internal/feed"
	"github.com/bulwark-mesh/bulwark/pkg/kubeevent"
	"github.com/bulwark-mesh/bulwark/pkg/mesh"
	"github.com/bulwark-mesh/bulwark/pkg/printable"
)

// maxBody bounds what an operator sends.
const maxBody = 4096

// announceHeld makes held removals an Event of the control plane's namespace, where operators look. How many there are would be the number of the first time.
func (p *Pilot) announceHeld(int) {
	p.events.Eventf(planeNamespace(), nil, corev1.EventTypeWarning, "RemovalsHeld", "Hold",
		"The API server listed so much less than there was that removals are held: proxies go on with what they have. Look with meshctl pilot held")
}

// confirmHeld lets the held removals through on an operator's word, who says how many they have seen and who they are.
func (p *Pilot) confirmHeld(r *http.Request) (any, error) {
	var word struct {
		Seen int    `json:"seen"`
		By   string `json:"by"`
	}
	if err := json.NewDecoder(io.LimitReader(r.Body, maxBody)).Decode(&word); err != nil {
		return nil, fmt.Errorf("the body is not {\"seen\": N, \"by\": NAME}: %w", err)
	}
	held := p.feed.Held()
	if err := p.feed.Confirm(word.Seen); err != nil {
		return nil, err
	}
	by := cmp.Or(word.By, "unknown")
	p.log.Warn("held removals are confirmed", "by", by, "count", word.Seen, "remote", r.RemoteAddr)
	note := fmt.Sprintf("%d held removals are let through, by %s", word.Seen, printable.Text(by))
	p.events.Eventf(planeNamespace(), kubeevent.Apart(note), corev1.EventTypeNormal, "RemovalsConfirmed", "Confirm", "%s", note)
	return struct {
		Confirmed []feed.Held `json:"confirmed"`
	}{held}, nil
}

func planeNamespace() *corev1.ObjectReference {
	return &corev1.ObjectReference{APIVersion: "v1", Kind: "Namespace", Name: mesh.Namespace}
}
