//! How wasmtime is configured: one engine and one pool of instances for the process.

use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig};

use crate::ModuleError;

/// Address space of one linear memory. Compiled code relies on it (no bounds checks), so every process that shares a
/// cache uses the same figure; it is reserved, never allocated.
const MEMORY_RESERVATION: u64 = 4 << 30;
/// Guard behind each linear memory, for constant offsets; part of what compiled code relies on.
const MEMORY_GUARD: u64 = 32 << 20;
/// Pages of a slot that stay resident between calls. More doubles the cost of a small call, since they are cleared.
const KEEP_RESIDENT: usize = 1 << 20;
/// Unused slots whose pages stay resident, so that a burst does not hold its memory for ever.
const WARM_SLOTS: u32 = 64;
/// Stack of a guest; deeper recursion traps.
const GUEST_STACK: usize = 512 << 10;
/// Elements of one table: Python guests have tens of thousands.
const TABLE_ELEMENTS: usize = 100_000;

/// What wasmtime keeps an account of beside an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Tasks {
    /// Nothing: a guest's functions return before it is called again. Each call costs less, those of the host most of all.
    Untold,
    /// The tasks of asynchronous functions, streams and futures, which components may have that know WASI 0.3.
    Told,
}

/// The engine for `instances` instances at the same time, each with up to `memory` bytes.
pub(crate) fn engine(tasks: Tasks, instances: u32, memory: u64) -> Result<Engine, ModuleError> {
    let mut pool = PoolingAllocationConfig::new();
    let memory = usize::try_from(memory).map_err(|e| ModuleError::Host(e.to_string()))?;
    pool.total_component_instances(instances)
        // A component is several core instances: the module, its adapters, and for interpreters their libraries.
        .total_core_instances(instances.saturating_mul(32))
        .total_memories(instances.saturating_mul(2))
        .total_tables(instances.saturating_mul(4))
        .total_stacks(instances.saturating_mul(2))
        .max_memory_size(memory)
        .table_elements(TABLE_ELEMENTS)
        .max_unused_warm_slots(WARM_SLOTS)
        .linear_memory_keep_resident(KEEP_RESIDENT)
        .table_keep_resident(64 << 10)
        .async_stack_keep_resident(64 << 10)
        .pagemap_scan(Enabled::Auto);

    let pooling = InstanceAllocationStrategy::Pooling(pool);
    Engine::new(&config(tasks, pooling)).map_err(|e| ModuleError::Host(format!("the pool of instances: {e:#}")))
}

/// An engine that understands the same components, for one instance at a time: what runs an initialiser adds to the
/// component, and has no place in a pool that is sized for guests.
pub(crate) fn unpooled() -> Result<Engine, ModuleError> {
    Engine::new(&config(Tasks::Told, InstanceAllocationStrategy::OnDemand))
        .map_err(|e| ModuleError::Host(format!("{e:#}")))
}

fn config(tasks: Tasks, allocation: InstanceAllocationStrategy) -> Config {
    let mut config = Config::new();
    config
        .allocation_strategy(allocation)
        .memory_reservation(MEMORY_RESERVATION)
        .memory_guard_size(MEMORY_GUARD)
        .memory_init_cow(true)
        .max_wasm_stack(GUEST_STACK)
        .async_stack_size(GUEST_STACK * 4)
        .epoch_interruption(true)
        .cranelift_opt_level(OptLevel::Speed)
        .wasm_component_model(true)
        .concurrency_support(tasks == Tasks::Told)
        .wasm_component_model_async(tasks == Tasks::Told)
        .wasm_simd(true)
        .wasm_relaxed_simd(true)
        // The same module gives the same answer on every machine of a fleet.
        .relaxed_simd_deterministic(true);
    config
}
