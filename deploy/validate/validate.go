// Package validate checks manifests as an API server would, without one: custom resources against
// the definitions in their projects' Go modules, Kubernetes' own against its Go types.
package validate

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/cel"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/listtype"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	yamlutil "k8s.io/apimachinery/pkg/util/yaml"
	celconfig "k8s.io/apiserver/pkg/apis/cel"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"

	"github.com/highwater-envoy/highwater/internal/corpus"
)

// definitions are where projects keep their custom resource definitions.
var definitions = map[string][]string{
	"github.com/envoyproxy/gateway": {
		"charts/gateway-helm/charts/crds/crds/gatewayapi-crds.yaml",
		"charts/gateway-helm/charts/crds/crds/generated/*.yaml",
	},
	"istio.io/istio": {"manifests/charts/base/files/crd-all.gen.yaml"},
	"github.com/prometheus-operator/prometheus-operator": {"example/prometheus-operator-crd/*.yaml"},
}

// Kinds are the custom resources that are known, by what their manifests call themselves. A kind is
// prepared when it is first asked for: the rules of all take a minute to compile.
type Kinds struct {
	raw  map[schema.GroupVersionKind]*apiextensionsv1.CustomResourceValidation
	made map[schema.GroupVersionKind]*kind
	own  runtime.Decoder // of Kubernetes' own
}

// kind is one version of a custom resource.
type kind struct {
	structural *structuralschema.Structural
	values     validation.SchemaValidator
	rules      *cel.Validator
}

// Load reads the definitions of all projects. It downloads their modules where Go's module cache
// has them not.
func Load(ctx context.Context) (*Kinds, error) {
	k := &Kinds{
		raw: map[schema.GroupVersionKind]*apiextensionsv1.CustomResourceValidation{}, made: map[schema.GroupVersionKind]*kind{},
		own: serializer.NewCodecFactory(scheme.Scheme, serializer.EnableStrict).UniversalDeserializer(),
	}
	for module, patterns := range definitions {
		project, err := corpus.Named(module)
		if err != nil {
			return nil, err
		}
		dir, err := project.Fetch(ctx)
		if err != nil {
			return nil, err
		}
		for _, pattern := range patterns {
			files, err := filepath.Glob(filepath.Join(dir, filepath.FromSlash(pattern)))
			if err != nil || len(files) == 0 {
				return nil, fmt.Errorf("%s: %s: %d files: %w", module, pattern, len(files), err)
			}
			for _, file := range files {
				if err := k.read(file); err != nil {
					return nil, fmt.Errorf("%s: %w", file, err)
				}
			}
		}
	}
	return k, nil
}

// read adds the definitions in a file.
func (k *Kinds) read(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return documents(text, func(doc []byte) error {
		var crd apiextensionsv1.CustomResourceDefinition
		if err := yaml.Unmarshal(doc, &crd); err != nil {
			return err
		}
		if crd.Kind != "CustomResourceDefinition" {
			return nil
		}
		for _, v := range crd.Spec.Versions {
			k.raw[schema.GroupVersionKind{Group: crd.Spec.Group, Version: v.Name, Kind: crd.Spec.Names.Kind}] = v.Schema
		}
		return nil
	})
}

// Check says everything that is wrong with the manifests in a text, by document.
func (k *Kinds) Check(ctx context.Context, text []byte) error {
	n, all := 0, error(nil)
	err := documents(text, func(doc []byte) error {
		n++
		if err := k.check(ctx, doc); err != nil {
			all = errors.Join(all, fmt.Errorf("document %d: %w", n, err))
		}
		return nil
	})
	if n == 0 && err == nil {
		err = errors.New("there is no manifest in it")
	}
	return errors.Join(all, err)
}

func (k *Kinds) check(ctx context.Context, doc []byte) error {
	object, err := decode(doc)
	if err != nil {
		return err
	}
	text := func(key string) string { s, _ := object[key].(string); return s }
	gv, err := schema.ParseGroupVersion(text("apiVersion"))
	if err != nil {
		return err
	}
	gvk := gv.WithKind(text("kind"))
	if metadata, ok := object["metadata"].(map[string]any); !ok || metadata["name"] == nil {
		return fmt.Errorf("%s: metadata.name: is missing", gvk)
	}
	if scheme.Scheme.Recognizes(gvk) {
		if _, _, err := k.own.Decode(doc, nil, nil); err != nil {
			return fmt.Errorf("%s: %w", gvk.Kind, err)
		}
		return nil
	}
	of, err := k.kind(gvk)
	if err != nil {
		return err
	}
	if err := of.check(ctx, object); err != nil {
		return fmt.Errorf("%s: %w", gvk.Kind, err)
	}
	return nil
}

// decode refuses a key that is given twice, and keeps whole numbers whole, as the validators want.
func decode(doc []byte) (object map[string]any, err error) {
	asJSON, err := yaml.YAMLToJSONStrict(doc)
	if err != nil {
		return nil, err
	}
	return object, utiljson.Unmarshal(asJSON, &object)
}

// kind prepares a kind, or says that nobody defines it.
func (k *Kinds) kind(gvk schema.GroupVersionKind) (*kind, error) {
	if of, ok := k.made[gvk]; ok {
		return of, nil
	}
	raw, ok := k.raw[gvk]
	if !ok || raw == nil {
		return nil, fmt.Errorf("%s: no project defines this kind in this version", gvk)
	}
	var internal apiextensions.CustomResourceValidation
	if err := apiextensionsv1.Convert_v1_CustomResourceValidation_To_apiextensions_CustomResourceValidation(raw, &internal, nil); err != nil {
		return nil, err
	}
	structural, err := structuralschema.NewStructural(internal.OpenAPIV3Schema)
	if err != nil {
		return nil, err
	}
	values, _, err := validation.NewSchemaValidator(internal.OpenAPIV3Schema)
	if err != nil {
		return nil, err
	}
	of := &kind{structural: structural, values: values, rules: cel.NewValidator(structural, true, celconfig.PerCallLimit)}
	k.made[gvk] = of
	return of, nil
}

// check does what an API server does with a custom resource: unknown fields, defaults, values,
// lists that are sets or maps, and rules.
func (of *kind) check(ctx context.Context, object map[string]any) error {
	var all error
	for _, path := range pruning.PruneWithOptions(object, of.structural, true, structuralschema.UnknownFieldPathOptions{TrackUnknownFieldPaths: true}) {
		all = errors.Join(all, fmt.Errorf("%s: there is no such field", path))
	}
	defaulting.Default(object, of.structural)
	wrong := validation.ValidateCustomResource(nil, object, of.values)
	wrong = append(wrong, listtype.ValidateListSetsAndMaps(nil, of.structural, object)...)
	if of.rules != nil {
		broken, _ := of.rules.Validate(ctx, nil, of.structural, object, nil, celconfig.RuntimeCELCostBudget)
		wrong = append(wrong, broken...)
	}
	return errors.Join(all, wrong.ToAggregate())
}

// documents visits each that is not empty.
func documents(text []byte, visit func(doc []byte) error) error {
	reader := yamlutil.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for {
		doc, err := reader.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		var content any
		if err := yaml.Unmarshal(doc, &content); err != nil {
			return err
		}
		if content == nil || len(bytes.TrimSpace(doc)) == 0 {
			continue
		}
		if err := visit(doc); err != nil {
			return err
		}
	}
}
