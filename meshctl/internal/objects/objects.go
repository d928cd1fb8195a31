// Package objects reads Kubernetes objects, of a cluster or of files, for commands that look at many of them at once.
package objects

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/tools/pager"

	"github.com/bulwark-mesh/bulwark/meshctl/internal/kube"
	"github.com/bulwark-mesh/bulwark/pilot/offline"
)

// listTimeout bounds the listing of one kind.
const listTimeout = 60 * time.Second

// listsAtOnce bounds how many kinds are asked for at a time: a cluster is asked for a dozen and more, and each answer takes its way there and back.
const listsAtOnce = 8

// InCluster lists the objects of the resources in every namespace, in the order of the resources. Kinds that the cluster does not know are left out.
func InCluster(ctx context.Context, c *kube.Client, resources []offline.Resource) ([]*unstructured.Unstructured, error) {
	found, errs := EachInCluster(ctx, c, resources)
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return slices.Concat(found...), nil
}

// EachInCluster lists the objects of each resource by itself, as InCluster does, with what went wrong.
func EachInCluster(ctx context.Context, c *kube.Client, resources []offline.Resource) ([][]*unstructured.Unstructured, []error) {
	found, errs := make([][]*unstructured.Unstructured, len(resources)), make([]error, len(resources))
	var group errgroup.Group
	group.SetLimit(listsAtOnce)
	for i, r := range resources {
		group.Go(func() error {
			var err error
			if found[i], err = list(ctx, c, r); err != nil && !apierrors.IsNotFound(err) {
				errs[i] = fmt.Errorf("listing %s: %w", r.GroupResource(), err)
			}
			return nil
		})
	}
	_ = group.Wait() // what went wrong is with each
	return found, errs
}

func list(ctx context.Context, c *kube.Client, r offline.Resource) (out []*unstructured.Unstructured, err error) {
	ctx, cancel := context.WithTimeout(ctx, listTimeout)
	defer cancel()
	options := metav1.ListOptions{}
	if r.Only.Name != "" {
		options.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, r.Only.Name).String()
	}
	pages := pager.New(func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
		return c.Dynamic.Resource(r.GroupVersionResource).Namespace(r.Only.Namespace).List(ctx, o)
	})
	err = pages.EachListItem(ctx, options, func(item runtime.Object) error {
		o, ok := item.(*unstructured.Unstructured)
		if !ok {
			return fmt.Errorf("it is a %T", item)
		}
		out = append(out, o)
		return nil
	})
	return out, err
}

// maxFile bounds a file, in bytes.
const maxFile = 64 << 20

// errNoObject is why a document is not what is looked for.
var errNoObject = errors.New("it has no kind or no apiVersion")

// InFiles reads the objects of files of YAML or JSON documents, of all such files in and below folders, and of in where a path is "-". A List is what it lists. An
// object without a namespace that has to have one is in namespace.
func InFiles(paths []string, in io.Reader, namespace string) (out []*unstructured.Unstructured, err error) {
	err = EachInFiles(paths, in, namespace, func(_ string, o *unstructured.Unstructured) { out = append(out, o) }, nil)
	if err != nil {
		return nil, err
	}
	return out, nil
}

// EachInFiles does what InFiles does, and says of each object which file it is in. A file of a folder with a document that is no Kubernetes object is passed over if
// skip is not nil, which is told.
func EachInFiles(paths []string, in io.Reader, namespace string, found func(file string, o *unstructured.Unstructured), skip func(file string, err error)) error {
	take := func(file string, in io.Reader, mayMiss bool) error {
		objects, err := read(in, namespace)
		switch {
		case mayMiss && skip != nil && errors.Is(err, errNoObject):
			skip(file, err)
			return nil
		case err != nil:
			return fmt.Errorf("%s: %w", file, err)
		}
		for _, o := range objects {
			found(file, o)
		}
		return nil
	}
	for _, path := range paths {
		if path == "-" {
			if err := take("standard input", in, false); err != nil {
				return err
			}
			continue
		}
		err := filepath.WalkDir(path, func(name string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() || name != path && !slices.Contains([]string{".yaml", ".yml", ".json"}, filepath.Ext(name)) {
				return err
			}
			file, err := os.Open(name)
			if err != nil {
				return err
			}
			defer file.Close()
			return take(name, file, name != path)
		})
		if err != nil {
			return fmt.Errorf("reading objects: %w", err)
		}
	}
	return nil
}

func read(in io.Reader, namespace string) (out []*unstructured.Unstructured, err error) {
	text, err := io.ReadAll(io.LimitReader(in, maxFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxFile {
		return nil, fmt.Errorf("it has more than %d bytes", maxFile)
	}
	documents := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for n := 1; ; n++ {
		o := &unstructured.Unstructured{}
		if err := documents.Decode(&o.Object); errors.Is(err, io.EOF) {
			return out, nil
		} else if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
		if len(o.Object) == 0 {
			continue
		}
		if o.GetKind() == "" || o.GetAPIVersion() == "" {
			return nil, fmt.Errorf("document %d is no Kubernetes object: %w", n, errNoObject)
		}
		if !o.IsList() {
			out = append(out, placed(o, namespace))
			continue
		}
		err := o.EachListItem(func(item runtime.Object) error {
			if listed, ok := item.(*unstructured.Unstructured); ok {
				out = append(out, placed(listed, namespace))
			}
			return nil
		})
		if err != nil {
			return nil, fmt.Errorf("document %d: %w", n, err)
		}
	}
}

// clusterWide are kinds that are in no namespace, as far as any command asks for them.
var clusterWide = []string{"Namespace", "Node", "ServiceCIDR"}

func placed(o *unstructured.Unstructured, namespace string) *unstructured.Unstructured {
	if o.GetNamespace() == "" && !slices.Contains(clusterWide, o.GetKind()) {
		o.SetNamespace(namespace)
	}
	return o
}
