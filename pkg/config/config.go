// Package config gives every server the same way to be configured: a YAML file, then the environment, then flags, each
// overriding the one before. A key that no setting has is an error that names the key.
package config

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"reflect"
	"strings"
	"syscall"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/spf13/cobra"
	"github.com/spf13/viper"

	"github.com/bulwark-mesh/bulwark/pkg/version"
)

// Validator is implemented by settings that can be wrong in ways their types do not show.
type Validator interface{ Validate() error }

// Command returns the cobra command of a server. Settings come from the fields of T, tagged `mapstructure:"name"` and
// `usage:"..."`: setting a.b is the flag --a.b, the environment variable BULWARK_A_B, and a.b in the file of --config.
// Run's context ends on SIGINT and SIGTERM.
func Command[T any](name, short string, defaults T, run func(context.Context, T) error) *cobra.Command {
	v := viper.NewWithOptions(viper.ExperimentalBindStruct())
	v.SetEnvPrefix("bulwark")
	v.SetEnvKeyReplacer(strings.NewReplacer(".", "_", "-", "_"))
	v.AutomaticEnv()
	var file string
	var check bool
	cmd := &cobra.Command{
		Use: name, Short: short, Version: version.String(), Args: cobra.NoArgs, SilenceUsage: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			settings, err := load[T](v, file)
			if err != nil {
				return err
			}
			if check {
				return nil
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return run(ctx, settings)
		},
	}
	cmd.Flags().StringVar(&file, "config", "", "YAML file of settings")
	cmd.Flags().BoolVar(&check, "check", false, "check the settings and end")
	if err := declare(cmd, v, "", reflect.ValueOf(defaults)); err != nil {
		panic(err) // a programming error: a field of a type no flag has
	}
	return cmd
}

// Parse returns the settings that a server would have with these flags, and checks them as it would. The environment and files
// are not looked at.
func Parse[T any](defaults T, args []string) (T, error) {
	v := viper.NewWithOptions(viper.ExperimentalBindStruct())
	cmd := &cobra.Command{}
	if err := declare(cmd, v, "", reflect.ValueOf(defaults)); err != nil {
		return defaults, err
	}
	if err := cmd.Flags().Parse(args); err != nil {
		return defaults, err
	}
	return load[T](v, "")
}

func load[T any](v *viper.Viper, file string) (T, error) {
	var settings T
	if file != "" {
		v.SetConfigFile(file)
		v.SetConfigType("yaml")
		if err := v.ReadInConfig(); err != nil {
			return settings, fmt.Errorf("reading configuration file %s: %w", file, err)
		}
	}
	strict := func(c *mapstructure.DecoderConfig) { c.ErrorUnused = true }
	if err := v.Unmarshal(&settings, strict); err != nil {
		return settings, fmt.Errorf("configuration: %w", err)
	}
	if val, ok := any(settings).(Validator); ok {
		if err := val.Validate(); err != nil {
			return settings, fmt.Errorf("configuration: %w", err)
		}
	}
	return settings, nil
}

// declare makes a flag and a default of every leaf below value.
func declare(cmd *cobra.Command, v *viper.Viper, prefix string, value reflect.Value) error {
	t := value.Type()
	if t.Kind() != reflect.Struct {
		return errors.New("settings must be a struct")
	}
	for i := range t.NumField() {
		field := t.Field(i)
		key := prefix + field.Tag.Get("mapstructure")
		if field.Type.Kind() == reflect.Struct {
			if err := declare(cmd, v, key+".", value.Field(i)); err != nil {
				return err
			}
			continue
		}
		usage, flags := field.Tag.Get("usage"), cmd.Flags()
		switch def := value.Field(i).Interface().(type) {
		case string:
			flags.String(key, def, usage)
		case bool:
			flags.Bool(key, def, usage)
		case int:
			flags.Int(key, def, usage)
		case float64:
			flags.Float64(key, def, usage)
		case time.Duration:
			flags.Duration(key, def, usage)
		case []string:
			flags.StringSlice(key, def, usage)
		case map[string]string:
			flags.StringToString(key, def, usage)
		default:
			return fmt.Errorf("setting %s has type %T, which no flag has", key, def)
		}
		v.SetDefault(key, value.Field(i).Interface())
		if flag := flags.Lookup(key); flag != nil {
			if err := v.BindPFlag(key, flag); err != nil {
				return err
			}
		}
	}
	return nil
}
