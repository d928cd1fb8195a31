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

func (s *session) syncValidating(ctx context.Context, name string) error {
	c, err := s.validating.Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	c = c.DeepCopy()
	changed := false
	for i := range c.Webhooks {
		changed = s.setBundle(&c.Webhooks[i].ClientConfig) || changed
	}
	if !changed {
		return nil
	}
	_, err = s.client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Update(ctx, c, metav1.UpdateOptions{FieldManager: mesh.FieldManager})
	return s.wroteWebhook(validating, name, err)
}

func (s *session) syncMutating(ctx context.Context, name string) error {
	c, err := s.mutating.Get(name)
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	c = c.DeepCopy()
	changed := false
	for i := range c.Webhooks {
		changed = s.setBundle(&c.Webhooks[i].ClientConfig) || changed
	}
	if !changed {
		return nil
	}
	_, err = s.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Update(ctx, c, metav1.UpdateOptions{FieldManager: mesh.FieldManager})
	return s.wroteWebhook(mutating, name, err)
}

// setBundle gives the API server the roots to verify Pilot's webhook service with, and reports whether that is a change.
func (s *session) setBundle(c *admissionv1.WebhookClientConfig) bool {
	roots := s.trust.Current().RootsPEM
	if c.Service == nil || bytes.Equal(c.CABundle, roots) {
		return false
	}
	c.CABundle = roots
	return true
}

func (s *session) wroteWebhook(kind, name string, err error) error {
	if err != nil {
		return fmt.Errorf("caBundle of %s %s: %w", kind, name, err)
	}
	s.wrote(kind)
	s.log.Info("caBundle of the webhooks set", "kind", kind, "name", name)
	return nil
}

// webhooksBehind counts the webhook configurations without the current roots.
func (s *session) webhooksBehind() int {
	roots, n := s.trust.Current().RootsPEM, 0
	stale := func(c admissionv1.WebhookClientConfig) bool {
		return c.Service != nil && !bytes.Equal(c.CABundle, roots)
	}
	if c, err := s.validating.Get(mesh.WebhookConfiguration); err == nil {
		if slices.ContainsFunc(c.Webhooks, func(w admissionv1.ValidatingWebhook) bool { return stale(w.ClientConfig) }) {
			n++
		}
	}
	if c, err := s.mutating.Get(mesh.WebhookConfiguration); err == nil {
		if slices.ContainsFunc(c.Webhooks, func(w admissionv1.MutatingWebhook) bool { return stale(w.ClientConfig) }) {
			n++
		}
	}
	return n
}
