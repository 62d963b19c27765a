;; The module of a graph that was deployed without one: the core module that world.wat makes a component of. The test
;; `passthrough_is_current` writes passthrough.wasm from both, and says so where that is out of date.
  (import "wasi:nn/tensor@0.2.0-rc-2024-10-28" "[constructor]tensor"
    (func $tensor (param $dims i32) (param $rank i32) (param $ty i32) (param $data i32) (param $len i32) (result i32)))
  (import "wasi:nn/graph@0.2.0-rc-2024-10-28" "load-by-name"
    (func $load_by_name (param $name i32) (param $len i32) (param $result i32)))
  (import "wasi:nn/graph@0.2.0-rc-2024-10-28" "[method]graph.init-execution-context"
    (func $init (param $graph i32) (param $result i32)))
  (import "wasi:nn/inference@0.2.0-rc-2024-10-28" "[method]graph-execution-context.compute"
    (func $compute (param $context i32) (param $inputs i32) (param $count i32) (param $result i32)))
  (import "wasi:nn/errors@0.2.0-rc-2024-10-28" "[method]error.data"
    (func $error_data (param $error i32) (param $result i32)))

  (import "env" "memory" (memory 1))
  (import "env" "realloc" (func $realloc (param i32 i32 i32 i32) (result i32)))

  (data (i32.const 16) "model")
  ;; description::graph("model")
  (data (i32.const 32) "\01\00\00\00\10\00\00\00\05\00\00\00")
  ;; 64: the result of an import, 16 bytes; 96: the answer, 20 bytes. What is allocated starts at 4096.

  (func $alloc (param $size i32) (result i32)
    (call $realloc (i32.const 0) (i32.const 0) (i32.const 4) (local.get $size)))

  (func (export "describe") (result i32)
    (i32.const 32))

  ;; failure::internal with the error's own words, as the answer.
  (func $fail (param $error i32) (result i32)
    (call $error_data (local.get $error) (i32.const 64))
    (i32.store (i32.const 96) (i32.const 1))
    (i32.store (i32.const 100) (i32.const 1))
    (i32.store (i32.const 104) (i32.load (i32.const 64)))
    (i32.store (i32.const 108) (i32.load (i32.const 68)))
    (i32.const 96))

  ;; Byte strings as a U8 tensor that holds each with its length before it.
  (func $strings (param $value i32) (result i32)
    (local $element i32) (local $last i32) (local $size i32) (local $data i32) (local $to i32) (local $len i32)
    (local.set $element (i32.load offset=8 (local.get $value)))
    (local.set $last (i32.add (local.get $element) (i32.shl (i32.load offset=12 (local.get $value)) (i32.const 3))))
    (block $sized
      (loop $each
        (br_if $sized (i32.eq (local.get $element) (local.get $last)))
        (local.set $size (i32.add (local.get $size) (i32.add (i32.const 4) (i32.load offset=4 (local.get $element)))))
        (local.set $element (i32.add (local.get $element) (i32.const 8)))
        (br $each)))
    (local.set $data (call $alloc (local.get $size)))
    (local.set $to (local.get $data))
    (local.set $element (i32.load offset=8 (local.get $value)))
    (block $done
      (loop $each
        (br_if $done (i32.eq (local.get $element) (local.get $last)))
        (local.set $len (i32.load offset=4 (local.get $element)))
        (i32.store align=1 (local.get $to) (local.get $len))
        (memory.copy (i32.add (local.get $to) (i32.const 4)) (i32.load (local.get $element)) (local.get $len))
        (local.set $to (i32.add (local.get $to) (i32.add (local.get $len) (i32.const 4))))
        (local.set $element (i32.add (local.get $element) (i32.const 8)))
        (br $each)))
    (call $tensor (i32.load (local.get $value)) (i32.load offset=4 (local.get $value))
      (i32.const 4) (local.get $data) (local.get $size)))

  ;; Named values (28 bytes: name, kind, value) to named tensors (12 bytes: name, handle).
  (func $inputs (param $from i32) (param $count i32) (result i32)
    (local $to i32) (local $all i32) (local $last i32)
    (local.set $all (call $alloc (i32.mul (local.get $count) (i32.const 12))))
    (local.set $to (local.get $all))
    (local.set $last (i32.add (local.get $from) (i32.mul (local.get $count) (i32.const 28))))
    (block $done
      (loop $each
        (br_if $done (i32.eq (local.get $from) (local.get $last)))
        (i64.store align=4 (local.get $to) (i64.load align=4 (local.get $from)))
        (i32.store offset=8 (local.get $to)
          (if (result i32) (i32.load8_u offset=8 (local.get $from))
            (then (call $strings (i32.add (local.get $from) (i32.const 12))))
            (else (i32.load offset=12 (local.get $from)))))
        (local.set $from (i32.add (local.get $from) (i32.const 28)))
        (local.set $to (i32.add (local.get $to) (i32.const 12)))
        (br $each)))
    (local.get $all))

  ;; Named tensors to named values.
  (func $outputs (param $from i32) (param $count i32) (result i32)
    (local $to i32) (local $all i32) (local $last i32)
    (local.set $all (call $alloc (i32.mul (local.get $count) (i32.const 28))))
    (local.set $to (local.get $all))
    (local.set $last (i32.add (local.get $from) (i32.mul (local.get $count) (i32.const 12))))
    (block $done
      (loop $each
        (br_if $done (i32.eq (local.get $from) (local.get $last)))
        (i64.store align=4 (local.get $to) (i64.load align=4 (local.get $from)))
        (i32.store offset=8 (local.get $to) (i32.const 0))
        (i32.store offset=12 (local.get $to) (i32.load offset=8 (local.get $from)))
        (local.set $from (i32.add (local.get $from) (i32.const 12)))
        (local.set $to (i32.add (local.get $to) (i32.const 28)))
        (br $each)))
    (local.get $all))

  (func (export "infer")
    (param $inputs i32) (param $count i32) (param $wanted i32) (param $wanted_count i32)
    (param $parameters i32) (param $parameter_count i32) (result i32)
    (call $load_by_name (i32.const 16) (i32.const 5) (i32.const 64))
    (if (i32.load8_u (i32.const 64)) (then (return (call $fail (i32.load (i32.const 68))))))
    (call $init (i32.load (i32.const 68)) (i32.const 64))
    (if (i32.load8_u (i32.const 64)) (then (return (call $fail (i32.load (i32.const 68))))))
    (call $compute (i32.load (i32.const 68)) (call $inputs (local.get $inputs) (local.get $count))
      (local.get $count) (i32.const 64))
    (if (i32.load8_u (i32.const 64)) (then (return (call $fail (i32.load (i32.const 68))))))
    ;; The host drops the outputs that were not asked for.
    (i32.store (i32.const 96) (i32.const 0))
    (i32.store (i32.const 100) (call $outputs (i32.load (i32.const 68)) (i32.load (i32.const 72))))
    (i32.store (i32.const 104) (i32.load (i32.const 72)))
    (i32.store (i32.const 108) (i32.const 0))
    (i32.store (i32.const 112) (i32.const 0))
    (i32.const 96))
