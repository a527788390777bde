-- One round of the load beside test/sqlsmith
SELECT tasksched.schedule_task(a, resource_id => a, params => jsonb_build_object('n', 1 + (random() * 1000)::integer))
FROM unnest('{query,query_stage,query_procedure,nothing,nothing}'::text[]) a;
SELECT tasksched.cancel_task(id) FROM tasksched.tasks WHERE status = 'active' AND updated_at < now() - interval '3 s';
SELECT tasksched.retry_task(id) FROM tasksched.tasks WHERE status IN ('failed', 'cancelled') AND random() < 0.01;
SELECT tasksched.delete_task(id) FROM tasksched.tasks WHERE status = 'complete' AND random() < 0.1;
SELECT tasksched.update_task(id, run_at => now() + interval '1 s', result => '1') FROM tasksched.tasks WHERE status = 'scheduled' LIMIT 1;
SELECT count(*) FROM tasksched.running_tasks, tasksched.status;
