package bundle

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/bulwark-mesh/bulwark/pkg/mesh"
)

// syncWebhooks gives the bundle to the webhooks of one kind, which the lister has and the client writes.
func syncWebhooks[C interface{ DeepCopy() C }](ctx context.Context, s *session, kind string, lister interface{ Get(string) (C, error) }, client interface {
	Update(context.Context, C, metav1.UpdateOptions) (C, error)
}) error {
	c, err := lister.Get(mesh.WebhookConfiguration)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	c = c.DeepCopy()
	changed := false
	for _, webhook := range webhooksOf(c) {
		changed = s.setBundle(webhook) || changed
	}
	if !changed {
		return nil
	}
	if _, err = client.Update(ctx, c, metav1.UpdateOptions{FieldManager: mesh.FieldManager}); err != nil {
		return fmt.Errorf("caBundle of %s %s: %w", kind, mesh.WebhookConfiguration, err)
	}
	s.wrote(kind)
	s.log.Info("caBundle of the webhooks set", "kind", kind, "name", mesh.WebhookConfiguration)
	return nil
}

// webhooksOf returns how to reach the webhooks of a configuration.
func webhooksOf(configuration any) (out []*admissionv1.WebhookClientConfig) {
	switch c := configuration.(type) {
	case *admissionv1.ValidatingWebhookConfiguration:
		for i := range c.Webhooks {
			out = append(out, &c.Webhooks[i].ClientConfig)
		}
	case *admissionv1.MutatingWebhookConfiguration:
		for i := range c.Webhooks {
			out = append(out, &c.Webhooks[i].ClientConfig)
		}
	}
	return out
}

// setBundle gives the API server the roots to verify Pilot's webhook service with, and reports whether that is a change.
func (s *session) setBundle(c *admissionv1.WebhookClientConfig) bool {
	roots := s.trust.Current().RootsPEM
	if !stale(c, roots) {
		return false
	}
	c.CABundle = roots
	return true
}

func stale(c *admissionv1.WebhookClientConfig, roots []byte) bool {
	return c.Service != nil && !bytes.Equal(c.CABundle, roots)
}

// webhooksBehind counts the webhook configurations without the current roots.
func (s *session) webhooksBehind() int {
	roots, n := s.trust.Current().RootsPEM, 0
	isStale := func(c *admissionv1.WebhookClientConfig) bool { return stale(c, roots) }
	if c, err := s.validating.Get(mesh.WebhookConfiguration); err == nil && slices.ContainsFunc(webhooksOf(c), isStale) {
		n++
	}
	if c, err := s.mutating.Get(mesh.WebhookConfiguration); err == nil && slices.ContainsFunc(webhooksOf(c), isStale) {
		n++
	}
	return n
}
